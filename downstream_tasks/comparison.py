"""The rows beside the model: baselines and controls through the same splits and heads."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from downstream_tasks.cohort.confounds import confound_table, without_confounds
from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.problem import Problem
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.features.registry import MODEL_NAME, REGISTRY, joint_name
from downstream_tasks.features.table import Representations
from downstream_tasks.heads.estimators import fit_head
from downstream_tasks.heads.joint import fit_joint
from downstream_tasks.heads.result import FittedMethod, HeadResult

logger = logging.getLogger(__name__)

_FROZEN = f"{MODEL_NAME}, frozen encoder"
_JOINT = "with the model"  # a fit, not a head: of the features and the model's together

FitFeatures = Callable[[np.ndarray, Problem], HeadResult]  # on features [n_examples, F]
FitEncoded = Callable[[str, Problem], HeadResult]  # on an encoder's representation, by its name


def baseline_rows(
    representations: Representations,
    problems: Sequence[Problem],
    fit: FitFeatures | None = None,
    head: str = "",
    encoded_fit: FitEncoded | None = None,
    encoded_head: str = "",
    names: Sequence[str] | None = None,
) -> list[FittedMethod]:
    """The rows of ``names``: by default ``evaluation.readouts`` and ``evaluation.baselines``.

    Those of ``evaluation.stack`` have a row together with the model too.

    Args:
        fit, head: the protocol's own head on features, and its name. By default logistic or ridge
            regression, which FC gets in any case.
        encoded_fit, encoded_head: in place of these for controls of the encoder, which get the
            plain head instead where ``evaluation.controls`` is ``frozen``.
    """
    config = representations.config
    if names is None:
        names = (*config.evaluation.readouts, *config.baselines)
    plain, frozen = plain_head(config), config.evaluation.controls == "frozen"

    def fit_plain(features: np.ndarray, problem: Problem) -> HeadResult:
        return fit_head(plain, features, problem, config.heads)

    if fit is None:
        fit, head = fit_plain, plain
    rows = []
    for name in names:
        logger.info("row: %s", name)
        entry, title = REGISTRY[name], representations.title(name)
        if entry.reads == "nothing":
            rows.append(no_features_row(representations.cohort, problems, name))
            continue
        if entry.is_control and encoded_fit is not None and not frozen:
            results = [encoded_fit(name, problem) for problem in problems]
            rows.append(FittedMethod(title, encoded_head, entry.kind, results, name))
            continue
        stacked = name in config.evaluation.stack
        if entry.is_control and frozen:
            fits = {plain: fit_plain}
        else:
            fits = ({plain: fit_plain} if entry.plain_head or stacked else {}) | {head: fit}
        if stacked:
            fits[_JOINT] = lambda features, problem: fit_joint(
                plain, features, representations.features("model", problem), problem, config.heads
            )
        results: dict[str, list[HeadResult]] = {head_name: [] for head_name in fits}
        for problem in problems:
            features = representations.features(name, problem)
            note = representations.of(problem).series.note(entry.reads)
            for head_name, fit_one in fits.items():
                results[head_name].append(_with_note(fit_one(features, problem), note))
        joint = results.pop(_JOINT, None)
        rows += [
            FittedMethod(title, head_name, entry.kind, of_head, name)
            for head_name, of_head in results.items()
        ]
        if joint:
            added = _FROZEN if config.protocol == "fine_tune" else MODEL_NAME
            title = representations.title(name, added)
            rows.append(FittedMethod(title, plain, "joint", joint, joint_name(name)))
        representations.forget(name)
    return rows


def _with_note(result: HeadResult, note: str | None) -> HeadResult:
    return replace(result, notes=(*result.notes, note)) if note else result


def confound_rows(
    representations: Representations,
    problems: Sequence[Problem],
    fit: FitFeatures | None = None,
    head: str = "",
) -> list[FittedMethod]:
    """The rows once more with ``data.confounds`` removed, and what the confounds alone predict.

    ``fit`` and ``head`` as in :func:`baseline_rows`. Without them the model's own row and its
    controls are not of feature tables (tokens, fine-tuning), and have no corrected row.
    """
    config = representations.config
    data, plain = config.data, plain_head(config)
    if not data.confounds:
        return []
    table = confound_table(representations.cohort, data.confounds).astype(np.float32)
    results = [fit_head(plain, table, problem, config.heads) for problem in problems]
    alone = FittedMethod("Confounds alone", plain, "baseline", results, "confounds")
    names = ["model", *config.evaluation.readouts, *config.baselines]
    of_tables = [name for name in names if REGISTRY[name].reads != "nothing"]
    if fit is None:
        own = {"model", *(name for name in names if REGISTRY[name].is_control)}
        of_tables = [name for name in of_tables if name not in own]
    corrected = problems
    if data.confounds_from == "target":
        corrected = [
            without_confounds(problem, data.confounds, data.label_normalization)
            for problem in problems
        ]
    rows = baseline_rows(representations.without_confounds(), corrected, fit, head, names=of_tables)
    other = corrected if data.confounds_from == "target" else None
    return [alone, *(replace(row, problems=other, confounds_removed=True) for row in rows)]


def plain_head(config: DownstreamConfig) -> str:
    """The head that others report for frozen features."""
    return {"classification": "logistic", "survival": "cox"}.get(config.data.type, "ridge")


def frozen_row(representations: Representations, problems: Sequence[Problem]) -> FittedMethod:
    """The checkpoint's encoder as it is, under a plain head: what is known before fine-tuning."""
    config = representations.config
    head = plain_head(config)
    results = [
        fit_head(head, representations.features("model", problem), problem, config.heads)
        for problem in problems
    ]
    return FittedMethod(_FROZEN, head, "readout", results, config.evaluation.level)


def no_features_row(
    cohort: Cohort, problems: Sequence[Problem], name: str = "majority"
) -> FittedMethod:
    """What one gets without looking at the brain: class frequencies, the mean target, or
    one risk for everyone.
    """
    entry = REGISTRY[name]
    results = []
    for problem in problems:
        y_train, n = problem.target.y[problem.split.train], len(cohort.y)
        if cohort.survival:
            y_train = np.zeros_like(y_train)  # no one is at a higher risk than another
        results.append(HeadResult(entry.function(y_train, problem.target.n_classes, n), {}))
    events = bool((cohort.examples["start"] >= 0).any())
    title = entry.title_of(events, cohort.type)
    return FittedMethod(title, "none", entry.kind, results, name)
