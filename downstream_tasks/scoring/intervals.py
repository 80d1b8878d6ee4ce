"""Intervals of metrics over people, and what is to be said of a predictor that decides nothing.

One split: the standard error comes from the jackknife over *clusters* (people, families, sites:
what was sampled as a whole), with a t quantile for as many degrees of freedom as the clusters of
the classes give (Satterthwaite). Metrics between 0 and 1 get Wilson's interval for the number of
independent decisions that would have that standard error (Korn and Graubard, 1998), errors a
logarithmic scale and correlations Fisher's, so that an interval stays in the metric's range and
does not shrink to a point at its ends. ``scripts/coverage.py`` measures how often they cover.

New people for every run: the corrected resampled t-test's standard error (Nadeau and Bengio, 2003).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from downstream_tasks.scoring.design import Design
from downstream_tasks.scoring.metrics import resampled_standard_error
from downstream_tasks.scoring.weighted import CHUNK_ELEMENTS, ScoredRun, weighted_metrics

LEVEL = 0.95
SHARES = (
    "accuracy",
    "balanced_accuracy",
    "f1_macro",
    "f1",
    "auroc",
    "average_precision",
    "c_index",
)
PER_UNIT = ("accuracy", "brier")  # a mean over units, whatever their class
CORRELATIONS = ("pearson", "spearman")
# The calibration error of a sample is above that of the population by more than its own spread: an
# interval around it would not cover.
WITHOUT_INTERVAL = ("ece",)
# Beyond so many clusters they are left out some at a time: the cost is of clusters x units.
_MAX_GROUPS = 1000
_ROUNDING = 1e-12

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Jackknife:
    """What each group of clusters contributes to the error of each metric.

    Attributes:
        estimate: of each metric, mean over the runs.
        influence: of each metric, ``[groups]``; the sum of squares is the squared standard error.
        stratum: ``[groups]`` numbers; groups of one stratum hold the same classes.
        n_clusters: how many there are.
        clusters_of_class, units_of_class: ``[classes that occur]``; one entry for regression, and
            one of those with the event for survival, without whom there is no pair.
    """

    estimate: dict[str, float]
    influence: dict[str, np.ndarray]
    stratum: np.ndarray
    n_clusters: int
    clusters_of_class: np.ndarray
    units_of_class: np.ndarray

    def can_vary(self, metric: str) -> bool:
        """Whether the clusters say anything about the error of ``metric``.

        What is a mean over classes needs two clusters of each.
        """
        fewest = self.n_clusters if metric in PER_UNIT else self.clusters_of_class.min()
        return fewest > 1

    def independent_decisions(self, metric: str, *, varies: bool) -> float:
        """The most independent decisions that ``metric`` can be a mean of.

        One a unit; where nothing varies between clusters (everything right, one class for everyone)
        the data do not say that the units of a cluster are independent, and it is one a cluster.
        """
        if metric in PER_UNIT:
            return float(self.units_of_class.sum() if varies else self.n_clusters)
        counts = self.units_of_class if varies else self.clusters_of_class
        return float(len(counts) ** 2 / (1 / counts).sum())

    def degrees_of_freedom(self, influence: np.ndarray) -> float:
        """Satterthwaite's: a variance made of strata of few clusters is known badly.

        At least those of the class with the fewest clusters, at most those of all.
        """
        lowest, highest = max(1, self.clusters_of_class.min() - 1), self.n_clusters - 1
        sizes = np.bincount(self.stratum)
        parts = np.bincount(self.stratum, influence**2)
        total = (parts**2 / np.maximum(sizes - 1, 1)).sum()
        if not total > 0:
            return float(lowest)
        return float(np.clip(parts.sum() ** 2 / total, lowest, highest))


def summarise(runs: Sequence[ScoredRun], design: Design) -> dict[str, Bounds]:
    """95 % interval of the mean over ``runs`` of each metric.

    NaN where there is nothing to tell it from: fewer than two clusters of a class, a metric that is
    undefined, or one that no test people could change (the AUROC of a constant).
    """
    if design.kind != "one_split" and len(runs) > 1:
        return _summarise_resampled(runs, design)
    jackknife = leave_out_clusters(runs)
    constant = all(is_constant(run) for run in runs)
    bounds: dict[str, Bounds] = {}
    for metric, influence in jackknife.influence.items():
        error = float(np.sqrt((influence**2).sum()))
        varies = error > _ROUNDING
        fixed = constant and not varies and metric not in PER_UNIT  # whoever is tested
        if fixed or not jackknife.can_vary(metric):
            bounds[metric] = (np.nan, np.nan)
            continue
        bounds[metric] = interval_of(
            metric,
            jackknife.estimate[metric],
            error,
            jackknife.degrees_of_freedom(influence),
            jackknife.independent_decisions(metric, varies=varies),
        )
    return _with_possible_brier(bounds, runs)


def _summarise_resampled(runs: Sequence[ScoredRun], design: Design) -> dict[str, Bounds]:
    values = [metrics_of(run) for run in runs]
    counts = leave_out_clusters(runs[:1])
    constant = all(is_constant(run) for run in runs)
    bounds = {}
    for metric in values[0]:
        of_runs = np.array([value[metric] for value in values])
        error = resampled_standard_error(of_runs, design.n_train, design.n_test)
        varies = error > _ROUNDING
        decisions = np.inf if varies else counts.independent_decisions(metric, varies=False)
        bounds[metric] = (
            (np.nan, np.nan)
            if constant and not varies and metric not in PER_UNIT
            else interval_of(metric, float(of_runs.mean()), error, len(runs) - 1, decisions)
        )
    return _with_possible_brier(bounds, runs)


def _with_possible_brier(bounds: dict[str, Bounds], runs: Sequence[ScoredRun]) -> dict[str, Bounds]:
    """``bounds`` with that of the Brier score held to its worst: 1, or 2 of several classes."""
    if "brier" not in bounds:
        return bounds
    worst = 1.0 if runs[0].scores.shape[1] == 2 else 2.0
    low, high = bounds["brier"]
    return bounds | {"brier": (low, worst)} if high > worst else bounds


def interval_of(
    metric: str, estimate: float, error: float, df: float, decisions: float = np.inf
) -> Bounds:
    """Interval of a metric with standard error ``error`` on the scale that suits it.

    ``decisions`` bounds the number of independent decisions that a metric between 0 and 1 is taken
    to be a mean of. NaN where a scale has no error: an error of 0, a correlation of 1.
    """
    t = stats.t.ppf((1 + LEVEL) / 2, df)
    if metric in WITHOUT_INTERVAL or not np.isfinite(estimate) or not np.isfinite(error):
        return np.nan, np.nan
    if metric in SHARES:
        return _wilson(min(max(estimate, 0.0), 1.0), error, t, decisions)
    if error <= _ROUNDING:
        return np.nan, np.nan
    if metric in CORRELATIONS:
        slope = 1 - estimate**2
        if slope <= _ROUNDING:
            return np.nan, np.nan
        low, high = np.tanh(np.arctanh(estimate) + np.array([-1, 1]) * t * error / slope)
        return float(low), float(high)
    positive = 1 - estimate if metric == "r2" else estimate  # the residual share, or an error
    if positive <= _ROUNDING:
        return np.nan, np.nan
    low, high = positive * np.exp(np.array([-1, 1]) * t * error / positive)
    return (float(1 - high), float(1 - low)) if metric == "r2" else (float(low), float(high))


def _wilson(share: float, error: float, t: float, decisions: float) -> Bounds:
    variance = share * (1 - share)
    n = min(variance / error**2, decisions) if error > _ROUNDING and variance > 0 else decisions
    centre = (share + t**2 / (2 * n)) / (1 + t**2 / n)
    half = t / (1 + t**2 / n) * np.sqrt(variance / n + t**2 / (4 * n**2))
    # At an end of the range the bound is that end, but for rounding.
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return float(min(low, share)), float(max(high, share))


def leave_out_clusters(runs: Sequence[ScoredRun]) -> Jackknife:
    """Every metric's jackknife over the clusters of all ``runs``, and their counts.

    The units of a class are counted in the first run: runs on one split share them.
    """
    clusters = np.unique(np.concatenate([run.clusters for run in runs]))
    positions = [np.searchsorted(clusters, run.clusters) for run in runs]
    holds = _classes_of_clusters(runs, positions, len(clusters))
    group, stratum = _groups(holds)
    size = np.bincount(group) / len(clusters)  # share of the clusters
    metrics = [metrics_of(run) for run in runs]
    estimate = {name: float(np.mean([m[name] for m in metrics])) for name in metrics[0]}
    influence = {name: np.zeros(len(size)) for name in estimate}
    chunk = max(1, CHUNK_ELEMENTS // max(len(run.y) for run in runs))
    for start in range(0, len(size), chunk):
        part = np.arange(start, min(start + chunk, len(size)))
        for run, position in zip(runs, positions, strict=True):
            kept = (group[position] != part[:, None]).astype(float)
            for name, without in weighted_metrics(run, kept).items():
                influence[name][part] += (1 - size[part]) * without / len(runs)
    for name, without in influence.items():
        contribution = (1 - size) * estimate[name] - without
        contribution -= size * contribution.sum()
        influence[name] = contribution * np.sqrt(len(size) / max(len(size) - 1, 1))
    return Jackknife(
        estimate,
        influence,
        stratum,
        len(clusters),
        clusters_of_class=holds.sum(axis=0),
        units_of_class=_units_of_class(runs[0]),
    )


def _units_of_class(run: ScoredRun) -> np.ndarray:
    if run.survival:
        return np.array([(run.y > 0).sum()])
    counts = np.bincount(run.y) if run.scores.ndim == 2 else np.array([len(run.y)])
    return counts[counts > 0]


def _classes_of_clusters(
    runs: Sequence[ScoredRun], positions: Sequence[np.ndarray], n_clusters: int
) -> np.ndarray:
    """Which clusters have units of which class, ``[clusters, classes that occur]``."""
    if runs[0].survival:
        holds = np.zeros((n_clusters, 1), dtype=bool)
        for run, position in zip(runs, positions, strict=True):
            holds[position[run.y > 0], 0] = True
        return holds
    if runs[0].scores.ndim == 1:
        return np.ones((n_clusters, 1), dtype=bool)
    holds = np.zeros((n_clusters, runs[0].scores.shape[1]), dtype=bool)
    for run, position in zip(runs, positions, strict=True):
        holds[position, run.y] = True
    return holds[:, holds.any(axis=0)]


def _groups(holds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group of each cluster and stratum of each group; clusters of few kind stay by themselves."""
    kinds, kind = np.unique(holds, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    if len(holds) <= _MAX_GROUPS:
        return np.arange(len(holds)), kind
    group, stratum = np.empty(len(holds), dtype=int), []
    rng = np.random.default_rng(0)
    for number in range(len(kinds)):
        members = rng.permutation(np.flatnonzero(kind == number))
        n_groups = min(len(members), _MAX_GROUPS)
        group[members] = len(stratum) + np.arange(len(members)) % n_groups
        stratum += [number] * n_groups
    return group, np.array(stratum)


def metrics_of(run: ScoredRun) -> dict[str, float]:
    """Every metric of one run."""
    values = weighted_metrics(run, np.ones((1, len(run.y))))
    return {name: float(value[0]) for name, value in values.items()}


# --- predictors that decide nothing --------------------------------------------------------------


def is_constant(run: ScoredRun) -> bool:
    """Whether everyone gets the same scores."""
    return bool((np.ptp(run.scores, axis=0) <= _ROUNDING).all())


def degenerate_notes(runs: Sequence[ScoredRun], classes: Sequence[str] = ()) -> tuple[str, ...]:
    """What is to be said of a predictor that tells no one apart, and of too few test people."""
    notes = []
    of_runs = f" in {{}} of {len(runs)} runs" if len(runs) > 1 else ""
    if constant := sum(is_constant(run) for run in runs):
        notes.append("gives everyone the same scores" + of_runs.format(constant))
    if not classes:
        return tuple(notes)
    called = [np.unique(run.scores.argmax(axis=1)) for run in runs if not is_constant(run)]
    for number, label in enumerate(classes):
        if same := sum(set(one) == {number} for one in called):
            notes.append(f"predicts {label} for everyone" + of_runs.format(same))
    for number, label in enumerate(classes):
        clusters = {cluster for run in runs for cluster in run.clusters[run.y == number]}
        if len(clusters) == 1:
            notes.append(f"one test person alone is in class {label}: no interval over classes")
    return tuple(notes)
