"""Metrics under weights: many resamples, or many sets of people left out, in one go.

A metric of a resample is the metric under integer weights (how often each example was drawn), and
one of fewer people has weights of 0 and 1. The weighted metrics below handle ``[W, n]`` weights at
once; tests hold them equal to scikit-learn and scipy on the repeated examples.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from downstream_tasks.scoring.calibration import CALIBRATION_METRICS, weighted_calibration
from downstream_tasks.scoring.survival import weighted_concordance

CHUNK_ELEMENTS = 2_000_000  # weights held at once; keeps memory at some tens of megabytes


@dataclass(frozen=True)
class ScoredRun:
    """Test predictions of one run.

    ``y`` ``[n]`` class numbers or z-scored targets; ``scores`` ``[n, C]`` probabilities or ``[n]``
    z-scored predictions; ``clusters`` ``[n]`` what each was sampled with (person, family or site);
    ``scale`` the target's training SD. With ``survival``, ``y`` are signed times
    (``scoring.survival``) and ``scores`` risks ``[n]``.
    """

    y: np.ndarray
    scores: np.ndarray
    clusters: np.ndarray
    scale: float = 1.0
    survival: bool = False


def weighted_metrics(
    run: ScoredRun, weights: np.ndarray, names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Metrics of ``run`` under each row of ``weights`` ``[W, n]``, each ``[W]``.

    With ``names``, what these do not need and costs much (rankings) is left out.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is the NaN we mean
        if run.survival:
            return {"c_index": weighted_concordance(run.y, run.scores, weights)}
        if run.scores.ndim == 2:
            return _weighted_classification(run.y, run.scores, weights, names)
        return _weighted_regression(run.y, run.scores, run.scale, weights, names)


def _weighted_classification(
    y: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, names: Collection[str] | None
) -> dict[str, np.ndarray]:
    n_classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    classes = np.arange(n_classes)
    is_true = (y[:, None] == classes).astype(float)  # [n, C]
    is_predicted = (predicted[:, None] == classes).astype(float)
    total, true, guessed = weights.sum(axis=1), weights @ is_true, weights @ is_predicted
    hits = weights @ (is_true * is_predicted)  # [W, C]
    f1 = np.where(true + guessed > 0, 2 * hits / (true + guessed), 0.0)
    recall = np.where(true > 0, hits / true, 0.0)
    occurs = (true > 0).sum(axis=1)
    result = {
        "accuracy": hits.sum(axis=1) / total,
        "balanced_accuracy": recall.sum(axis=1) / occurs,
        "f1_macro": f1.mean(axis=1),
    }
    if n_classes == 2:
        result["f1"] = f1[:, 1]
    if names is None or {"auroc", "average_precision"} & {*names}:
        against_rest = [1] if n_classes == 2 else range(n_classes)
        ranked = [
            _weighted_ranking(is_true[:, c], probabilities[:, c], weights) for c in against_rest
        ]
        result["auroc"] = np.mean([auroc for auroc, _ in ranked], axis=0)
        result["average_precision"] = np.mean([precision for _, precision in ranked], axis=0)
        undefined = occurs < n_classes
        result["auroc"][undefined] = np.nan
        result["average_precision"][undefined] = np.nan
    if names is None or {*CALIBRATION_METRICS} & {*names}:
        result |= weighted_calibration(y, probabilities, weights)
    return result


def _tie_groups(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order that sorts ``values`` and the start of each group of equal ones in that order."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    return order, starts


def _weighted_ranking(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision of one class against the rest, each ``[W]``."""
    order, starts = _tie_groups(scores)
    w = weights[:, order]
    pos = np.add.reduceat(w * positive[order], starts, axis=1)  # [W, groups of equal score]
    neg = np.add.reduceat(w * (1 - positive[order]), starts, axis=1)
    n_pos, n_neg = pos.sum(axis=1), neg.sum(axis=1)
    negatives_below = np.cumsum(neg, axis=1) - neg / 2  # a tie counts half
    auroc = (pos * negatives_below).sum(axis=1) / (n_pos * n_neg)
    hits = np.cumsum(pos[:, ::-1], axis=1)
    called = np.cumsum((pos + neg)[:, ::-1], axis=1)
    precision = np.where(called > 0, hits / called, 0.0)
    return auroc, (pos[:, ::-1] * precision).sum(axis=1) / n_pos


def _weighted_regression(
    y: np.ndarray,
    predicted: np.ndarray,
    scale: float,
    weights: np.ndarray,
    names: Collection[str] | None,
) -> dict[str, np.ndarray]:
    total = weights.sum(axis=1)
    error = y - predicted
    mse = weights @ error**2 / total
    mae = weights @ np.abs(error) / total
    mean = weights @ y / total
    variance = (weights * (y - mean[:, None]) ** 2).sum(axis=1) / total
    result = {
        "mse": mse,
        "mae": mae,
        "r2": np.where(variance > 0, 1 - mse / variance, np.nan),
        "pearson": _weighted_correlation(np.broadcast_to(y, weights.shape), predicted, weights),
        "mse_raw": mse * scale**2,
        "mae_raw": mae * scale,
    }
    if names is None or "spearman" in names:
        ranks = _weighted_ranks(y, weights), _weighted_ranks(predicted, weights)
        result["spearman"] = _weighted_correlation(*ranks, weights)
    return result


def _weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean rank ``[W, n]`` each example has when it is repeated ``weights`` times."""
    order, starts = _tie_groups(values)
    group_weight = np.add.reduceat(weights[:, order], starts, axis=1)
    rank = np.cumsum(group_weight, axis=1) - (group_weight - 1) / 2
    group_of = np.empty(len(values), dtype=int)
    group_of[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(values)]))
    return rank[:, group_of]


def _weighted_correlation(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    total = weights.sum(axis=1, keepdims=True)
    a = a - (weights * a).sum(axis=1, keepdims=True) / total
    b = b - (weights * b).sum(axis=1, keepdims=True) / total
    spread = np.sqrt((weights * a**2).sum(axis=1) * (weights * b**2).sum(axis=1))
    negligible = spread <= 1e-12 * total[:, 0]  # a constant resample: rounding noise, not variance
    return np.where(negligible, np.nan, (weights * a * b).sum(axis=1) / spread)
