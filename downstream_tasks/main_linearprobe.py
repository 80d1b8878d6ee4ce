"""Frozen protocols: linear and attentive probe, logistic and ridge regression, nearest neighbours.

The encoder runs once over the clips; every head, seed and setting is fitted on the stored features.
"""

from functools import partial

import numpy as np
import torch

from downstream_tasks.cohort.problem import Problem
from downstream_tasks.comparison import (
    baseline_rows,
    confound_rows,
    no_features_row,
    plain_head,
)
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.evaluation import Evaluation, prepare
from downstream_tasks.features.registry import MODEL_NAME
from downstream_tasks.features.table import Representations
from downstream_tasks.heads.estimators import fit_head
from downstream_tasks.heads.protocols import encoded_fit, feature_head_name, fit_features, head_name
from downstream_tasks.heads.result import FittedMethod, HeadResult
from downstream_tasks.heads.stored import describe_head, head_path, read_head, save_head
from downstream_tasks.report.folder import clear_results
from downstream_tasks.report.results import Results
from downstream_tasks.studies.methods import Method
from downstream_tasks.studies.run import check_studies, run_studies
from src.utils.logging import setup_logging


def run(config: DownstreamConfig, device: torch.device, evaluate: bool = False) -> Results:
    """Evaluate a frozen encoder as ``config.protocol`` says; write ``config.output_dir``.

    With ``evaluate`` nothing is fitted: the heads and splits that an earlier run stored there are
    read again, and the result goes to its folder ``eval``. Returns what it wrote there.

    Raises:
        UserError: on bad input of any kind.
    """
    setup_logging(config.output_dir)
    evaluation = prepare(config, from_stored=evaluate)
    check_studies(evaluation)
    if not evaluate:
        evaluation.begin()
    representations = Representations(config, evaluation.cohort, evaluation.pretrained, device)
    return evaluate_frozen(evaluation, representations, evaluate)


def evaluate_frozen(
    evaluation: Evaluation, representations: Representations, evaluate: bool = False
) -> Results:
    """What :func:`run` does once everything is loaded and the splits are made."""
    config, cohort, problems = evaluation.config, evaluation.cohort, evaluation.problems
    head = head_name(config)
    if evaluate:
        results = [read_head(representations, problem) for problem in problems]
        rows = [
            FittedMethod(MODEL_NAME, head, "model", results, "model"),
            no_features_row(cohort, problems),
        ]
        clear_results(config.output_dir / "eval")
        return evaluation.report(rows, config.output_dir / "eval")

    results = list(map(encoded_fit(representations, "model"), problems))
    about = describe_head(representations)
    for problem, result in zip(problems, results, strict=True):
        save_head(head_path(config, problem), result, about)
    methods = study_methods(representations, head)  # before the rows, which let go of features
    # Raw baselines have neither tokens to attend to nor a pooled token to normalise.
    fit, fit_name = partial(fit_features, config), feature_head_name(config)
    if config.protocol == "attentive_probe":
        fit, fit_name = None, ""
    corrected = confound_rows(representations, problems, fit, fit_name)
    others = baseline_rows(
        representations,
        problems,
        fit,
        fit_name,
        encoded_fit=lambda name, problem: encoded_fit(representations, name)(problem),
        encoded_head=head,
    )
    rows = [FittedMethod(MODEL_NAME, head, "model", results, "model"), *others, *corrected]
    studies = run_studies(config, problems, rows, *methods)
    return evaluation.report(rows, permutations=studies.permutations, curve=studies.curve)


def study_methods(representations: Representations, head: str) -> tuple[list[Method], list[Method]]:
    """What a permutation test is made of, and what learning curves are drawn of.

    The first are the model and FC with the head that it gets in any case; the curves have the
    untrained encoder as well, and FC with the model's head.
    """
    config = representations.config
    if not (config.evaluation.n_permutations or config.evaluation.train_sizes):
        return [], []
    baselines, plain = config.baselines, plain_head(config)
    model = Method(MODEL_NAME, head, encoded_fit(representations, "model"))
    tested, compared = [model], [model]
    if "fc" in baselines:
        title = representations.title("fc")

        def features(problem: Problem) -> np.ndarray:
            return representations.features("fc", problem)

        def fit_plain(problem: Problem) -> HeadResult:
            return fit_head(plain, features(problem), problem, config.heads)

        def fit_own(problem: Problem) -> HeadResult:
            return fit_features(config, features(problem), problem)

        fc = Method(title, plain, fit_plain)
        tested.append(fc)
        compared.append(fc)
        own = feature_head_name(config)
        if config.protocol != "attentive_probe" and own != plain:
            compared.append(Method(title, own, fit_own))
    if "random_weights" in baselines:
        title = representations.title("random_weights")
        compared.append(Method(title, head, encoded_fit(representations, "random_weights")))
    return tested, compared
