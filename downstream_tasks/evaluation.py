"""What every protocol begins with: checkpoint, labelled people, checked splits, targets."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from downstream_tasks.cohort.clips import task_clip_input, with_split_statistics
from downstream_tasks.cohort.examples import Cohort, load_cohort
from downstream_tasks.cohort.families import FAMILY_KEY
from downstream_tasks.cohort.few_shot import few_shot_runs, few_shot_words
from downstream_tasks.cohort.problem import Problem, make_target, study_design
from downstream_tasks.cohort.runs import (
    RunSplit,
    make_splits,
    save_splits,
    split_notes,
    stored_splits,
)
from downstream_tasks.cohort.survival import event_notes
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.features.adjust import FeatureAdjustment
from downstream_tasks.heads.result import FittedMethod
from downstream_tasks.notes import qualify, training_people
from downstream_tasks.report.folder import clear_results
from downstream_tasks.report.results import CheckpointInfo, CurvePoint, PermutationTest, Results
from downstream_tasks.report.write import write_report
from downstream_tasks.scoring.design import Design
from downstream_tasks.scoring.metrics import main_metric_names
from src.datasets.folder import DataFolder
from src.pretrained.encoder import Pretrained
from src.pretrained.load import load_pretrained
from src.utils.errors import UserError
from src.utils.person_ids import known_ids

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """A task ready to be evaluated: one problem per seed, or per seed and test fold.

    ``runs`` are the splits of people; where few events are labelled each has a problem per draw.
    ``pretrained_on`` is how many test people (of any seed) the encoder was pretrained on, by their
    ids; ``None`` where the checkpoint does not say. ``notes`` are what qualifies the whole
    evaluation, such as input unlike the checkpoint's, ``settings`` what was done to the data, by
    name; both reach the results.
    """

    config: DownstreamConfig
    pretrained: Pretrained
    folder: DataFolder
    cohort: Cohort
    problems: Sequence[Problem]
    pretrained_on: int | None = None
    notes: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    runs: Sequence[RunSplit] = ()

    @property
    def design(self) -> Design:
        """What the runs are to each other."""
        return study_design(self.problems)

    def begin(self) -> None:
        """Clear what an earlier run wrote into the result folder; write the splits there.

        To be called once nothing can be refused any more: it may have been all that there was, and
        ``split.file`` may be one of its files.
        """
        clear_results(self.config.output_dir)
        save_splits(self.config.output_dir, self.cohort, self.runs)

    def report(
        self,
        methods: Sequence[FittedMethod],
        folder: Path | None = None,
        *,
        permutations: Sequence[PermutationTest] = (),
        curve: Sequence[CurvePoint] = (),
    ) -> Results:
        """Score ``methods`` and write them to ``folder``, by default that of the task."""
        return write_report(
            folder or self.config.output_dir,
            self.config,
            self.cohort,
            self.problems,
            methods,
            describe_checkpoint(self.config, self.pretrained, self.pretrained_on),
            notes=self.notes,
            settings=self.settings,
            permutations=permutations,
            curve=curve,
        )


def load_model(
    config: DownstreamConfig, *, with_predictor: bool = False
) -> tuple[Pretrained, DataFolder]:
    """The checkpoint, with its predictor if wanted, and the data folder, whose ROIs must agree.

    Raises:
        UserError: on either that cannot be read, a contradiction, a predictor that is missing, or
            ROIs in another order.
    """
    model = config.model
    if model.load_path is None:
        raise UserError("model.load_path (--load_path) is missing: the checkpoint to evaluate.")
    pretrained = load_pretrained(
        model.load_path,
        which=model.network,
        load_epoch=model.load_epoch,
        model_name=model.model_name,
        num_heads=model.num_heads,
        crop_size=model.crop_size,
        patch_size=model.patch_size,
        pred_depth=model.pred_depth,
        pred_emb_dim=model.pred_emb_dim,
        add_w=model.add_w,
        gradient_csv_path=config.data.gradient_csv_path,
        attn_mode=model.attn_mode,
        with_predictor=with_predictor,
    )
    folder = DataFolder(config.data.data_path)
    pretrained.check_folder(folder)
    return pretrained, folder


def load_people(config: DownstreamConfig, folder: DataFolder, pretrained: Pretrained) -> Cohort:
    """The labelled people of ``folder``.

    Raises:
        UserError: as :func:`load_cohort`, and on a metric that their classes do not have.
    """
    clip_input = task_clip_input(config.data, pretrained)
    cohort = load_cohort(folder, config.data, clip_input, pretrained.encoder_spec.patch_size)
    allowed = main_metric_names(config.data.type, len(cohort.classes))
    if config.metric not in allowed:
        raise UserError(
            f"evaluation.metric is {config.metric}, which {len(cohort.classes)} classes "
            f"({', '.join(cohort.classes)}) do not have; allowed: {', '.join(allowed)}."
        )
    return cohort


def prepare(
    config: DownstreamConfig,
    *,
    from_stored: bool = False,
    loaded: tuple[Pretrained, DataFolder] | None = None,
) -> Evaluation:
    """Load everything and divide the people; nothing is written.

    With ``from_stored`` the splits are those that an earlier run wrote into the output folder.
    ``loaded`` is what :func:`load_model` gave.

    Raises:
        UserError: as :func:`load_model`, :func:`load_people` and :func:`make_splits`, and if the
            checkpoint was fine-tuned on test people.
    """
    pretrained, folder = loaded or load_model(config)
    cohort = load_people(config, folder, pretrained)
    if from_stored:
        runs = stored_splits(cohort, config.split, config.seeds, config.output_dir)
    else:
        runs = make_splits(cohort, config.split, config.seeds, validation=config.needs_validation)
    test_people = {person for run in runs for person in cohort.people[run.split.test]}
    _check_unseen(pretrained, test_people)
    seen = people_of_pretraining(pretrained, test_people)
    of_events = event_notes(cohort, runs)
    problems = pose_problems(config, cohort, runs)
    adjustment = FeatureAdjustment(config.data, cohort)
    for problem in problems:
        adjustment.check(problem)
    first = runs[0].split.train
    if all(np.array_equal(run.split.train, first) for run in runs):
        pretrained = with_split_statistics(pretrained, config.data, cohort, first)
    counts = {part: len(set(cohort.people[m])) for part, m in runs[0].split.parts().items()}
    logger.info(
        "%s: %d people, %d scored %ss; train %d, valid %d, test %d",
        config.name,
        cohort.summary().n_people,
        len(cohort.units),
        config.data.unit,
        *counts.values(),
    )
    notes, settings = qualify(config, pretrained, folder, cohort, test_people, seen)
    pretrained_on = None if seen is None else len(seen)
    notes = (*notes, *split_notes(cohort, config.split, runs), *of_events)
    settings = settings | adjustment.settings()
    if cohort.disjoint not in ((), (FAMILY_KEY,)):
        settings["in one part together"] = f"people of one {' or '.join(cohort.disjoint)}"
    few_shot = config.evaluation.few_shot
    if few_shot.events:
        settings = settings | {"labelled": few_shot_words(few_shot, counts["train"])}
    if config.heads.selection == "fixed":
        name, grid = config.grid
        per_feature = "" if name == "n_neighbors" else " per feature"
        settings = settings | {"heads": f"nothing chosen, {name} {grid[0]:g}{per_feature}"}
    return Evaluation(
        config, pretrained, folder, cohort, problems, pretrained_on, notes, settings, runs
    )


def pose_problems(
    config: DownstreamConfig, cohort: Cohort, runs: Sequence[RunSplit] | None = None
) -> list[Problem]:
    """One problem for each of ``runs``, or for each of their draws where few events are labelled.

    By default the runs are splits made as the task says, not written.

    Raises:
        UserError: as :func:`make_splits` and :func:`make_target`.
    """
    if runs is None:
        validation = config.needs_validation
        runs = make_splits(cohort, config.split, config.seeds, validation=validation)
    return [
        Problem(
            cohort,
            run.split,
            make_target(cohort, run.split, config.data.label_normalization),
            config.metric,
            run.seed,
            run.fold,
            balanced=config.evaluation.class_weights == "balanced",
            draw=draw,
        )
        for run, draw in few_shot_runs(cohort, runs, config.evaluation.few_shot)
    ]


def describe_checkpoint(
    config: DownstreamConfig, pretrained: Pretrained, pretrained_on: int | None = None
) -> CheckpointInfo:
    """Weights, training people and input of the checkpoint, for ``results.json``."""
    clip_input = task_clip_input(config.data, pretrained)
    return CheckpointInfo(
        path=str(pretrained.path),
        kind=pretrained.kind,
        network=config.model.network,
        model_name=pretrained.encoder_spec.model_name,
        encoder=pretrained.encoder_spec.to_dict(),
        atlas=pretrained.atlas,
        training_people=training_people(config, pretrained),
        test_people_in_pretraining=pretrained_on,
        normalization=clip_input.normalization,
        normalization_in_pretraining=pretrained.clip_input.normalization,
        cleaning=clip_input.cleaning,
        cleaning_in_pretraining=pretrained.clip_input.cleaning,
        sampling=clip_input.sampling,
        sampling_in_pretraining=pretrained.clip_input.sampling,
    )


# --- training people of the checkpoint -----------------------------------------------------------


def _check_unseen(pretrained: Pretrained, test_people: set[str]) -> None:
    """Refuse test people with whose labels the checkpoint was fine-tuned, or its epoch chosen."""
    split = pretrained.split or {}
    if seen := sorted(test_people & {*split.get("train", ()), *split.get("valid", ())}):
        raise UserError(
            f"{len(seen)} of {len(test_people)} test people are among the training and validation "
            f"people that {pretrained.path} was fine-tuned with: {', '.join(seen[:10])}. Test on "
            "its own test people by split.file (the split_seed*.tsv beside its seed folder), or "
            "on a data set of other people."
        )


def people_of_pretraining(pretrained: Pretrained, test_people: set[str]) -> set[str] | None:
    """Test people whose ids are among those of the pretraining; ``None`` if it does not say."""
    if pretrained.training_people is None:
        return None
    return known_ids(test_people, pretrained.training_people)
