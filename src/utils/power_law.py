"""Power laws of scores against a size: ``y = ceiling - scale * x ** -exponent``, with an interval.

For a given exponent the law is linear, so that the best exponent and what the data leave possible
are read off one curve: the residual sum of squares over the exponent (a profile likelihood). A law
that the data do not show is said to be none, with the reason.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import f as f_distribution

# Beyond these a power law cannot be told from a logarithm, or from a single step.
LEAST, MOST = 0.02, 5.0
_GRID = np.geomspace(LEAST, MOST, 400)


@dataclass(frozen=True)
class PowerLaw:
    """A fit; ``reason`` says why there is none, and the numbers are NaN then.

    Attributes:
        exponent, low, high: the exponent and its interval.
        ceiling: where the law leads for large x; given, or fitted.
        scale: distance from the ceiling at x = 1.
        n: number of points.
    """

    exponent: float
    low: float
    high: float
    ceiling: float
    scale: float
    n: int
    reason: str = ""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The law at ``x``."""
        return self.ceiling - self.scale * np.asarray(x, dtype=float) ** -self.exponent

    def __str__(self) -> str:
        if self.reason:
            return f"no power law: {self.reason}"
        return f"exponent {self.exponent:.2f} [{self.low:.2f}, {self.high:.2f}]"


def fit_power_law(
    x: np.ndarray, y: np.ndarray, ceiling: float | None = None, level: float = 0.95
) -> PowerLaw:
    """Fit a law to points with independent errors of equal size.

    Args:
        x, y: ``[n]``; sizes above 0, repeated where there are repeats, and scores.
        ceiling: that of a perfect predictor; ``None`` fits it.
        level: of the interval.

    Returns:
        The law, or one without numbers and with a ``reason``: too few sizes; scores that do not
        grow with x (or not more than chance would have it: an F test against a constant at 1 -
        ``level``); an exponent that the data do not bound within .02 and 5.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    n, free = len(x), 2 + (ceiling is None)
    none = partial(PowerLaw, *[np.nan] * 5, n)
    if len(np.unique(x)) < free or n <= free:
        return none(f"{len(np.unique(x))} sizes and {n} points for {free} numbers")
    rss = partial(_residuals, x, y, ceiling)
    start = int(np.argmin([rss(c) for c in _GRID]))
    around = _GRID[max(0, start - 1)], _GRID[min(len(_GRID) - 1, start + 1)]
    best = minimize_scalar(rss, bounds=around, method="bounded", options={"xatol": 1e-6}).x
    least = max(rss(best), np.finfo(float).tiny)
    flat = ((y - y.mean()) ** 2).sum()
    if ceiling is None:
        numbers = free - 1  # beyond the constant
        p = f_distribution.sf((flat / least - 1) * (n - free) / numbers, numbers, n - free)
        grows = p < 1 - level
    else:
        grows = flat > least * _limit(level, n - free)
    scale, top = _linear(x, y, ceiling, best)
    if not grows or scale <= 0:
        return none("scores do not grow with size beyond chance")
    bound = least * _limit(level, n - free)
    if rss(LEAST) <= bound or rss(MOST) <= bound:
        return none("the exponent is not bounded by these points")
    low = brentq(lambda c: rss(c) - bound, LEAST, best)
    high = brentq(lambda c: rss(c) - bound, best, MOST)
    return PowerLaw(float(best), low, high, float(top), float(scale), n)


def _limit(level: float, degrees: int) -> float:
    """Residual sum of squares that an exponent of the interval may have, over the least one."""
    return 1 + f_distribution.ppf(level, 1, degrees) / degrees


def _linear(
    x: np.ndarray, y: np.ndarray, ceiling: float | None, exponent: float
) -> tuple[float, float]:
    """Best scale and ceiling for an exponent."""
    power = x**-exponent
    if ceiling is not None:
        return float(power @ (ceiling - y) / (power @ power)), ceiling
    centred = power - power.mean()
    scale = -float(centred @ y / (centred @ centred))
    return scale, float(y.mean() + scale * power.mean())


def _residuals(x: np.ndarray, y: np.ndarray, ceiling: float | None, exponent: float) -> float:
    scale, top = _linear(x, y, ceiling, exponent)
    return float(((y - top + scale * x**-exponent) ** 2).sum())
