"""Two methods on the same test people: their difference, its interval, and a test.

One split: the interval is the jackknife's over clusters (see ``scoring.intervals``); the p-value
comes from exchanging the two methods' predictions within clusters, which under the hypothesis that
it does not matter which method predicted changes nothing. Every exchange is made where there are
few clusters, else a random sample. The two are different statements, and near the limit they may
disagree: :func:`verdict` then says neither better nor worse.

New people for every run: interval and p are both the corrected resampled t-test's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats

from downstream_tasks.scoring.design import Design
from downstream_tasks.scoring.intervals import (
    CORRELATIONS,
    LEVEL,
    SHARES,
    Bounds,
    leave_out_clusters,
    metrics_of,
)
from downstream_tasks.scoring.metrics import corrected_resampled_ttest, resampled_standard_error
from downstream_tasks.scoring.weighted import CHUNK_ELEMENTS, ScoredRun, weighted_metrics

N_EXCHANGES = 1999
_RANKING = ("auroc", "average_precision", "spearman", "c_index")
_TIE = 1e-9  # differences closer than this are the same number, summed in another order

Verdict = Literal["above", "below", "not told apart", "borderline", "no interval"]


@dataclass(frozen=True)
class PairedComparison:
    """``difference`` of the first method from the second, mean over runs; ``test`` gave ``p``."""

    difference: float
    interval: Bounds
    p: float
    test: str


def compare(
    a: Sequence[ScoredRun],
    b: Sequence[ScoredRun],
    metric: str,
    design: Design,
    *,
    n_exchanges: int = N_EXCHANGES,
    seed: int = 0,
) -> PairedComparison:
    """The paired difference ``a`` - ``b`` in ``metric``, with its 95 % interval and p-value.

    Raises:
        ValueError: if the runs of the two are not of the same units in the same order.
    """
    for first, second in zip(a, b, strict=True):
        if not np.array_equal(first.clusters, second.clusters) or not np.allclose(
            first.y, second.y
        ):
            raise ValueError("the two methods were not scored on the same test people")
    if design.kind != "one_split" and len(a) > 1:
        return _compare_resampled(a, b, metric, design)
    difference, bounds = _interval(a, b, metric)
    if not np.isfinite(difference):
        return PairedComparison(difference, bounds, np.nan, "")
    p, exact = exchange_test(a, b, metric, n_exchanges, seed)
    return PairedComparison(difference, bounds, p, f"{'exact ' if exact else ''}paired permutation")


def verdict(interval: Bounds, p: float) -> Verdict:
    """What interval and p-value of a difference say together.

    Above or below 0 where both do (the interval alone where there is no p); ``borderline`` where
    they contradict each other; ``no interval`` where there is none and the test does not say by
    itself that the two are alike.
    """
    low, high = interval
    if np.isnan(low) or np.isnan(high):
        return "not told apart" if p >= 1 - LEVEL else "no interval"
    excluded = low > 0 or high < 0
    if not np.isnan(p) and excluded != (p < 1 - LEVEL):
        return "borderline"
    return ("above" if low > 0 else "below") if excluded else "not told apart"


def _compare_resampled(
    a: Sequence[ScoredRun], b: Sequence[ScoredRun], metric: str, design: Design
) -> PairedComparison:
    of_runs = np.array(
        [metrics_of(x)[metric] - metrics_of(y)[metric] for x, y in zip(a, b, strict=True)]
    )
    _, p = corrected_resampled_ttest(of_runs, design.n_train, design.n_test)
    error = resampled_standard_error(of_runs, design.n_train, design.n_test)
    half = stats.t.ppf((1 + LEVEL) / 2, len(of_runs) - 1) * error if np.isfinite(p) else np.nan
    difference = float(of_runs.mean())
    return PairedComparison(
        difference, _within_range(metric, difference, half), p, "corrected resampled t-test"
    )


def _interval(a: Sequence[ScoredRun], b: Sequence[ScoredRun], metric: str) -> tuple[float, Bounds]:
    first, second = leave_out_clusters(a), leave_out_clusters(b)
    difference = first.estimate[metric] - second.estimate[metric]
    influence = first.influence[metric] - second.influence[metric]
    variance = float((influence**2).sum())
    if not np.isfinite(variance) or not first.can_vary(metric):
        return difference, (np.nan, np.nan)
    if metric in SHARES:
        # One decision is in doubt however much the two agree (as in Agresti and Min, 2005): near
        # the end of the range the interval of few decisions is too narrow without it.
        decisions = first.independent_decisions(metric, varies=variance > _TIE**2)
        variance += 1 / (decisions + 1) ** 2
    df = first.degrees_of_freedom(influence)
    half = stats.t.ppf((1 + LEVEL) / 2, df) * np.sqrt(variance) if variance > _TIE**2 else np.nan
    return difference, _within_range(metric, difference, half)


def _within_range(metric: str, difference: float, half: float) -> Bounds:
    if not np.isfinite(difference) or not np.isfinite(half):
        return np.nan, np.nan
    limit = 1.0 if metric in SHARES else 2.0 if metric in CORRELATIONS else np.inf
    return float(max(-limit, difference - half)), float(min(limit, difference + half))


def exchange_test(
    a: Sequence[ScoredRun],
    b: Sequence[ScoredRun],
    metric: str,
    n_exchanges: int = N_EXCHANGES,
    seed: int = 0,
) -> tuple[float, bool]:
    """Two-sided p of the difference in ``metric``, and whether every exchange was made.

    A cluster's units are exchanged together, in every run. What counts in a ranking or a
    correlation is a prediction's rank or z-score within its method, so those are exchanged: two
    methods may predict on different scales (Venkatraman and Begg, 1996).
    """
    clusters = np.unique(np.concatenate([run.clusters for run in a]))
    exact = len(clusters) < 60 and 2 ** len(clusters) <= n_exchanges + 1
    rng = np.random.default_rng(seed)
    n_rows = 2 ** len(clusters) if exact else n_exchanges
    joined = [_joined(first, second, metric) for first, second in zip(a, b, strict=True)]
    positions = [np.searchsorted(clusters, run.clusters) for run in a]
    observed = _difference(joined, positions, metric, np.zeros((1, len(clusters))))[0]
    chunk = max(1, CHUNK_ELEMENTS // max(len(run.y) for run in joined))
    as_large = 0
    for start in range(0, n_rows, chunk):
        rows = np.arange(start, min(start + chunk, n_rows))
        if exact:
            exchanged = (rows[:, None] >> np.arange(len(clusters))) & 1
        else:
            exchanged = rng.integers(0, 2, (len(rows), len(clusters)))
        values = _difference(joined, positions, metric, exchanged)
        as_large += int((np.abs(values) >= np.abs(observed) - _TIE).sum())
    # In a sample of exchanges the observed one is counted too; all of them hold it.
    return (as_large / n_rows if exact else (as_large + 1) / (n_rows + 1)), exact


def _joined(a: ScoredRun, b: ScoredRun, metric: str) -> ScoredRun:
    """The units twice, with the predictions of one method and then of the other."""
    scores = [a.scores, b.scores]
    if metric in _RANKING:
        scores = [stats.rankdata(each, axis=0) for each in scores]
    elif metric in CORRELATIONS:
        scores = [(each - each.mean()) / (each.std() or 1.0) for each in scores]
    y, clusters = np.tile(a.y, 2), np.tile(a.clusters, 2)
    return replace(a, y=y, scores=np.concatenate(scores), clusters=clusters)


def _difference(
    joined: Sequence[ScoredRun],
    positions: Sequence[np.ndarray],
    metric: str,
    exchanged: np.ndarray,
) -> np.ndarray:
    """Mean difference over runs ``[W]`` with the clusters of ``exchanged`` ``[W, clusters]``."""
    values = []
    for run, position in zip(joined, positions, strict=True):
        other = exchanged[:, position].astype(float)
        first = weighted_metrics(run, np.hstack([1 - other, other]), [metric])[metric]
        second = weighted_metrics(run, np.hstack([other, 1 - other]), [metric])[metric]
        values.append(first - second)
    return np.mean(values, axis=0)
