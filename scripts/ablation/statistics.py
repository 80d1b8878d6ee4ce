"""Paired differences over people, and p-values corrected for how many of them were asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
N_SIGN_FLIPS = 99_999  # sampled where there are more than that; p is 1e-5 at least then
_TIE = 1e-12  # a difference within this of 0 is no gain and no loss


@dataclass(frozen=True)
class Paired:
    """Differences of ``n`` people, positive where the first is better.

    Attributes:
        mean, low, high: with the 95 % interval of Student's t.
        t_p: of the paired t-test.
        flip_p: of the sign-flip test: differences are as likely to have the other sign.
        wilcoxon_p: of the signed-rank test.
        gain: people whose difference is above 0.
    """

    n: int
    gain: int
    mean: float
    low: float
    high: float
    t_p: float
    flip_p: float
    wilcoxon_p: float


def paired(differences: Sequence[float], seed: int = 0) -> Paired:
    """Test ``differences`` of independent people (or families); NaN where nothing can be tested."""
    d = np.asarray(differences, dtype=float)
    if not np.isfinite(d).all():
        raise ValueError("differences must be finite; leave out people without a score first")
    n, gain = len(d), int((d > _TIE).sum())
    mean = float(d.mean()) if n else np.nan
    if n < 2 or (np.abs(d) <= _TIE).all():
        p = np.nan if n < 2 else 1.0  # no one differs
        low = high = np.nan if n < 2 else 0.0
        return Paired(n, gain, mean, low, high, p, p, p)
    test = stats.ttest_1samp(d, 0.0) if np.ptp(d) > _TIE else None
    bounds = test.confidence_interval(LEVEL) if test else (mean, mean)
    ranks = stats.wilcoxon(d)
    t_p = float(test.pvalue) if test else 0.0
    return Paired(
        n, gain, mean, *map(float, bounds), t_p, sign_flip_p(d, seed), float(ranks.pvalue)
    )


def sign_flip_p(d: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of the mean of ``d`` ``[n]`` among those with other signs: all, or a sample."""
    if exact := 2 ** len(d) <= N_SIGN_FLIPS + 1:
        rows = np.arange(2 ** len(d))[:, None]
        signs = 1 - 2 * ((rows >> np.arange(len(d))) & 1)
    else:
        rng = np.random.default_rng(seed)
        signs = rng.integers(0, 2, (N_SIGN_FLIPS, len(d)), dtype=np.int8) * 2 - 1
    sums = np.abs(signs @ d)  # of people who number thousands 0.1 GB of signs for each thousand
    as_large = int((sums >= np.abs(d.sum()) - len(d) * _TIE).sum())
    # In a sample the observed signs are counted too; all of them hold it.
    return as_large / len(signs) if exact else (as_large + 1) / (N_SIGN_FLIPS + 1)


def holm(p: Sequence[float]) -> np.ndarray:
    """P-values corrected by Holm (1979), in their order; NaN are no tests and stay NaN."""
    p = np.asarray(p, dtype=float)
    corrected = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = len(order) - np.arange(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return corrected
