"""The rows beside the model: baselines and controls through the same splits and heads."""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.problem import Problem
from downstream_tasks.features import baselines
from downstream_tasks.features.table import ENCODED, Representations
from downstream_tasks.heads.estimators import fit_head
from downstream_tasks.heads.result import HeadResult, Row

logger = logging.getLogger(__name__)


FitFeatures = Callable[[np.ndarray, Problem], HeadResult]  # on features [n_examples, F]
FitEncoded = Callable[[str, Problem], HeadResult]  # on an encoder's representation, by its name


def baseline_rows(
    representations: Representations,
    problems: Sequence[Problem],
    fit: FitFeatures | None = None,
    head: str = "",
    encoded_fit: FitEncoded | None = None,
    encoded_head: str = "",
) -> list[Row]:
    """The rows of ``evaluation.baselines``.

    Args:
        fit, head: the protocol's own head on features, and its name. By default logistic or ridge
            regression, which FC gets in any case: it is what others report (Brainmarks).
        encoded_fit, encoded_head: in place of these for representations of the encoder.
    """
    config, names = representations.config, representations.config.evaluation.baselines
    plain = "logistic" if config.data.type == "classification" else "ridge"

    def fit_plain(features: np.ndarray, problem: Problem) -> HeadResult:
        return fit_head(plain, features, problem, config.heads)

    if fit is None:
        fit, head = fit_plain, plain
    rows = []
    for name in names:
        logger.info("baseline: %s", name)
        if name == "majority":
            rows.append(no_features_row(representations.cohort, problems))
            continue
        kind = "control" if name in ("time_permuted", "held_constant") else "baseline"
        if name in ENCODED and encoded_fit is not None:
            results = [encoded_fit(name, problem) for problem in problems]
            rows.append(Row(representations.title(name), encoded_head, kind, results))
            continue
        features = representations.features(name)
        fits = {plain: fit_plain} if name == "fc" else {}
        for head_name, fit_one in (fits | {head: fit}).items():
            results = [fit_one(features, problem) for problem in problems]
            rows.append(Row(representations.title(name), head_name, kind, results))
    return rows


def no_features_row(cohort: Cohort, problems: Sequence[Problem]) -> Row:
    """What one gets without looking at the brain: class frequencies, or the mean target."""
    results = []
    for problem in problems:
        train, n_classes, n = problem.split.train, problem.target.n_classes, len(cohort.y)
        y_train = problem.target.y[train]
        if n_classes:
            scores = baselines.majority_scores(y_train, n_classes, n)
        else:
            scores = np.full(n, y_train.mean())
        results.append(HeadResult(scores, {}))
    title = "Majority class" if cohort.is_classification else "Mean of the training people"
    return Row(title, "none", "baseline", results)
