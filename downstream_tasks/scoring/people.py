"""Scores that every person has: their mean with an interval, paired differences, many tests.

People of one group (a family) count as one cluster.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from downstream_tasks.scoring.intervals import LEVEL, Bounds

N_FLIPS = 99_999  # of signs, where there are too many to take them all
_TIE = 1e-12


class PairedScores(NamedTuple):
    """Mean difference of two methods over people, and in how many it is above 0."""

    difference: float
    interval: Bounds
    p: float
    test: str
    n_gain: int
    n_people: int


def mean_interval(values: np.ndarray, groups: np.ndarray) -> tuple[float, Bounds]:
    """Mean of ``values`` ``[n]`` and its 95 % t interval; clustered by ``groups`` ``[n]``.

    Without groups of several this is the usual one. NaN bounds with fewer than two groups.
    """
    mean = float(np.mean(values))
    _, place = np.unique(groups, return_inverse=True)
    totals = np.bincount(place, weights=values - mean)
    n = len(totals)
    if n < 2:
        return mean, (np.nan, np.nan)
    error = np.sqrt(n / (n - 1) * (totals**2).sum()) / len(values)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * error)
    return mean, (mean - half, mean + half)


def compare_people(a: np.ndarray, b: np.ndarray, groups: np.ndarray) -> PairedScores:
    """The paired difference ``a`` - ``b`` of scores ``[n]`` of the same people."""
    difference = a - b
    mean, interval = mean_interval(difference, groups)
    p, exact = sign_flip(difference, groups)
    test = f"{'exact ' if exact else ''}sign flips"
    return PairedScores(mean, interval, p, test, int((difference > 0).sum()), len(a))


def sign_flip(
    difference: np.ndarray, groups: np.ndarray, n_flips: int = N_FLIPS
) -> tuple[float, bool]:
    """Two-sided p of a mean of 0, by flipping the signs of groups; and whether all were flipped.

    Where the two methods are equally good, a person's difference is as likely to have either sign.
    """
    _, place = np.unique(groups, return_inverse=True)
    totals = np.bincount(place, weights=difference)
    n, observed = len(totals), abs(totals.sum())
    tie = _TIE * np.abs(totals).sum()
    exact = n < 60 and 2**n <= n_flips + 1
    if exact:
        signs = 1 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(signs @ totals) >= observed - tie).mean()), True
    generator, as_large = np.random.default_rng(0), 0
    for size in np.full(-(-n_flips // 1000), 1000):
        signs = 1 - 2.0 * generator.integers(0, 2, (size, n))
        as_large += int((np.abs(signs @ totals) >= observed - tie).sum())
    drawn = 1000 * -(-n_flips // 1000)
    return (as_large + 1) / (drawn + 1), False


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values of several tests, adjusted so that none is below .05 by chance (Holm, 1979)."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    scaled = p[order] * (len(p) - np.arange(len(p)))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return adjusted
