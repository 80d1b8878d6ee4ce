"""Paired differences over people, with p-values corrected for how many of them were asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from downstream_tasks.scoring.intervals import LEVEL
from downstream_tasks.scoring.people import compare_people
from downstream_tasks.scoring.people import holm as holm_of_tests


@dataclass(frozen=True)
class Paired:
    """Differences of ``n`` people, positive where the first is better, in ``gain`` of them.

    Attributes:
        mean, low, high: with the 95 % interval of Student's t; families are clusters.
        t_p: of that t.
        flip_p: of the sign-flip test: differences are as likely to have the other sign.
    """

    n: int
    gain: int
    mean: float
    low: float
    high: float
    t_p: float
    flip_p: float


def paired(a: np.ndarray, b: np.ndarray, groups: np.ndarray) -> Paired:
    """Compare scores ``[n]`` of the same people, of families ``groups``.

    NaN where nothing can be tested: no one, or one family only.
    """
    if not np.isfinite([a, b]).all():
        raise ValueError("scores must be finite; leave out people without a score first")
    n_groups = len(np.unique(groups))
    if not len(a):
        return Paired(0, 0, *[np.nan] * 5)
    found = compare_people(a, b, groups)
    low, high = found.interval
    gain, t_p = found.n_gain, np.nan
    if n_groups > 1:
        quantile = stats.t.ppf((1 + LEVEL) / 2, n_groups - 1)
        error = (high - low) / 2 / quantile
        if error > 0:
            t_p = float(2 * stats.t.sf(abs(found.difference) / error, n_groups - 1))
        else:
            t_p = 1.0 if found.difference == 0 else 0.0
    flip_p = found.p if n_groups > 1 else np.nan
    return Paired(len(a), gain, found.difference, low, high, t_p, flip_p)


def holm(p: Sequence[float]) -> np.ndarray:
    """P-values corrected by Holm (1979), in their order; NaN are no tests and stay NaN."""
    p = np.asarray(p, dtype=float)
    corrected = np.full(p.shape, np.nan)
    corrected[~np.isnan(p)] = holm_of_tests(p[~np.isnan(p)])
    return corrected
