"""Calibration of class probabilities: Brier score, expected calibration error, reliability curve.

With two classes the event is the second class and its probability is judged; with more it is that
the class called is the true one, judged by that class's probability (top-label calibration, Guo et
al. 2017). Bins are ten of equal width from 0 to 1, a bin without its upper edge but for the last.
They do not move with the data, so that every resample and every method is binned alike.

Class weights shift probabilities on purpose: a balanced head is well calibrated for classes of
equal frequency, not for those of the cohort.
"""

from dataclasses import dataclass

import numpy as np

N_BINS = 10
CALIBRATION_METRICS = ("brier", "ece")


@dataclass(frozen=True)
class ReliabilityBin:
    """``n`` predictions: their mean probability, and how often the event came true."""

    n: int
    predicted: float
    observed: float


def weighted_calibration(
    y: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Brier score and expected calibration error under each row of ``weights`` ``[W, n]``.

    The Brier score is the mean squared error of the probabilities ``[n, C]``: of the second class
    for two classes (0 to 1), summed over classes for more (0 to 2), as in scikit-learn. The
    expected calibration error is the mean over predictions of the distance between probability and
    frequency in their bin. It is never negative: perfectly calibrated probabilities of 40 people
    are at about .16, of 200 at .07 (simulated), and a resample of them is above that. So methods
    are compared by it, on the same people; a value is not read on its own.
    """
    total = weights.sum(axis=1)
    error = probabilities - (y[:, None] == np.arange(probabilities.shape[1]))
    squared = (error**2).sum(axis=1) / (2 if probabilities.shape[1] == 2 else 1)
    p, event = _judged(y, probabilities)
    in_bin = _bin_of(p)[:, None] == np.arange(N_BINS)
    # Weight of a bin x |frequency - mean probability| = |sum of weight x (event - probability)|.
    gap = weights @ (in_bin * (event - p)[:, None])
    return {
        "brier": weights @ squared / total,
        "ece": np.abs(gap).sum(axis=1) / total,
    }


def calibration_metrics(y: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """:func:`weighted_calibration` of one test set."""
    values = weighted_calibration(y, probabilities, np.ones((1, len(y))))
    return {name: float(value[0]) for name, value in values.items()}


def reliability_curve(y: np.ndarray, probabilities: np.ndarray) -> list[ReliabilityBin]:
    """The bins that hold predictions, from the lowest probability to the highest."""
    p, event = _judged(y, probabilities)
    bins = _bin_of(p)
    return [
        ReliabilityBin(int(here.sum()), float(p[here].mean()), float(event[here].mean()))
        for here in (bins == k for k in np.unique(bins))
    ]


def _judged(y: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The probability that is judged, and whether its event came true, each ``[n]``."""
    if probabilities.shape[1] == 2:
        return probabilities[:, 1], (y == 1).astype(float)
    called = probabilities.argmax(axis=1)
    return probabilities.max(axis=1), (y == called).astype(float)


def _bin_of(p: np.ndarray) -> np.ndarray:
    return np.digitize(p, np.arange(1, N_BINS) / N_BINS)
