"""The studies that a task asks for, on the features and methods of its evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

from downstream_tasks.cohort.clips import lacks_statistics
from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.problem import Problem, Target, make_target
from downstream_tasks.cohort.splits import Split
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.evaluation import Evaluation, pose_problems
from downstream_tasks.heads.result import FittedMethod
from downstream_tasks.report.results import CurvePoint, PermutationTest
from downstream_tasks.studies.figures import save_learning_curve
from downstream_tasks.studies.learning_curve import learning_curve, summarise_curve, write_table
from downstream_tasks.studies.methods import Method, mean_test_score
from downstream_tasks.studies.permutation import permutation_test
from src.utils.errors import UserError


@dataclass(frozen=True)
class Studies:
    """What was found; empty where a study was not asked for."""

    permutations: Sequence[PermutationTest] = ()
    curve: Sequence[CurvePoint] = ()


def check_studies(evaluation: Evaluation) -> None:
    """Refuse studies of features that depend on the split, before anything is computed.

    Raises:
        UserError: if clips are normalised by statistics of the training people of every split.
    """
    config = evaluation.config
    wanted = {
        "n_permutations": config.evaluation.n_permutations,
        "train_sizes": config.evaluation.train_sizes,
    }
    asked = [f"evaluation.{name}" for name, value in wanted.items() if value]
    if asked and lacks_statistics(config.data, evaluation.pretrained):
        raise UserError(
            f"{' and '.join(asked)}: the checkpoint holds no statistics of normalisation, so that "
            "every new set of training people would need a pass of the encoder. Give them by "
            "data.statistics_file, or use one split (split.resample=false)."
        )


def run_studies(
    config: DownstreamConfig,
    problems: Sequence[Problem],
    rows: Sequence[FittedMethod],
    tested: Sequence[Method],
    compared: Sequence[Method],
) -> Studies:
    """The permutation test of ``tested`` and the learning curve of ``compared`` methods.

    Scores, table and picture of the curve are written to ``config.output_dir``.

    Args:
        rows: the evaluation's own fits, among them those of ``tested``.
    """
    evaluation = config.evaluation
    tests, points = [], []
    if evaluation.n_permutations:
        fits = {(row.name, row.head): row.results for row in rows}
        observed = [mean_test_score(problems, fits[m.name, m.head]) for m in tested]
        tests = permutation_test(
            tested,
            observed,
            problems[0].cohort,
            lambda cohort: pose_problems(config, cohort),
            evaluation.n_permutations,
            evaluation.seed,
        )
    if evaluation.train_sizes:

        def target_of(cohort: Cohort, split: Split) -> Target:
            return make_target(cohort, split, config.data.label_normalization)

        table = learning_curve(
            compared, problems, evaluation.train_sizes, evaluation.train_draws, target_of
        )
        points = summarise_curve(table, config.metric)
        write_table(config.output_dir, table)
        save_learning_curve(config.output_dir, points, config.metric)
    return Studies(tests, points)
