"""Ridge regression from sums: many regressions from one pass, cross-fitted over people.

Samples come in folds (of people) and strata (ROIs, each with an intercept of its own that is not
penalised). From the sums of one pass any subset of inputs and outputs can be regressed, and each
regression comes with the fits that leave a fold out, whose predictions of that fold are out of
sample. Memory does not grow with the number of samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.utils.ridge import Sums

# For standardised inputs, times their number. Down to nearly nothing: a band-limited series goes on
# as small differences of its past say, which any shrinkage hides.
STRENGTHS = tuple(np.logspace(-12, 3, 31).tolist())
_ROUNDING = 1e-14  # of the largest eigenvalue: directions in which inputs do not vary


class Choice(NamedTuple):
    """One way to regress: ``columns`` of the input; ``name`` is said where it is chosen."""

    name: str
    columns: np.ndarray


class Fit(NamedTuple):
    """A linear map of some columns of the input, with an intercept for each stratum."""

    columns: Tensor  # [d]
    coefficients: Tensor  # [d, O], float64
    intercepts: Tensor  # [S, O]
    minus: Tensor | None  # [O]: columns whose value is added, as the fit is to what they leave

    def predict(self, x: Tensor, strata: Tensor) -> Tensor:
        """Predict ``[..., O]`` from the whole input ``[..., D_in]`` and strata ``[...]``."""
        found = x[..., self.columns].double() @ self.coefficients + self.intercepts[strata]
        return (found if self.minus is None else found + x[..., self.minus]).float()


@dataclass(frozen=True)
class CrossFit:
    """The regression with the least cross-validated error.

    Attributes:
        full: fitted to all folds.
        without: fitted to all folds but that one.
        choice, strength: what was chosen.
        r2: cross-validated, over the means of the strata in the other folds.
    """

    full: Fit
    without: tuple[Fit, ...]
    choice: str
    strength: float
    r2: float

    def of(self, fold: int | None) -> Fit:
        """The fit that has not seen ``fold``; ``None`` for people of no fold."""
        return self.full if fold is None else self.without[fold]


def _select(sums: Sums, columns: Tensor, outputs: Tensor, minus: Tensor | None) -> Sums:
    """Sums of some inputs and outputs, or of what input columns ``minus`` leave of those."""
    x, y, yy = sums.x[:, columns], sums.y[:, outputs], sums.yy[outputs]
    xx, xy = sums.xx[columns][:, columns], sums.xy[columns][:, outputs]
    if minus is not None:
        y, xy = y - sums.x[:, minus], xy - sums.xx[columns][:, minus]
        yy = yy - 2 * sums.xy[minus, outputs] + sums.xx[minus, minus]
    return Sums(sums.n, x, y, xx, xy, yy)


class CrossSums:
    """Sums, per fold, of inputs ``[D_in]`` and outputs ``[D_out]``, float64 on the host.

    They are ``n_folds * (n_strata + D_in) * (D_in + D_out)`` numbers.
    """

    def __init__(self, n_folds: int, n_strata: int, d_in: int, d_out: int) -> None:
        self._sums = Sums.zeros(n_folds, n_strata, d_in, d_out)
        self._folds = [self._sums.fold(fold) for fold in range(n_folds)]

    def add(self, x: Tensor, y: Tensor, strata: Tensor, fold: int) -> None:
        """Add ``x`` ``[n, D_in]`` and ``y`` ``[n, D_out]`` of strata ``[n]``, all of one fold."""
        self._folds[fold].add(x.double(), y.double(), strata)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean ``[D_in]`` and covariance of all inputs, whatever their stratum."""
        total = self._sums.total()
        n = total.n.sum()
        mean = total.x.sum(0) / n
        return mean, total.xx / n - mean[:, None] * mean

    def fit(
        self,
        choices: Sequence[Choice],
        outputs: np.ndarray | None = None,
        minus: np.ndarray | None = None,
    ) -> CrossFit:
        """The best of ``choices`` and of :data:`STRENGTHS` by cross-validation over the folds.

        Args:
            outputs: of all outputs these; by default all.
            minus: one column of the input for each output: a prediction of it, to which the
                regression adds (stacking). Without any use of the inputs it stays what it is.
        """
        total = self._sums.total()
        places = np.arange(total.y.shape[1]) if outputs is None else outputs
        outputs = torch.as_tensor(places)
        minus = None if minus is None else torch.as_tensor(minus)
        found = []
        for choice in choices:
            columns = torch.as_tensor(choice.columns)
            whole = _select(total, columns, outputs, minus)
            parts = [_select(fold, columns, outputs, minus) for fold in self._folds]
            sd = (whole.about(*whole.means())[0].diagonal() / whole.n.sum()).clamp_min(0).sqrt()
            scale = torch.where(sd > 0, 1 / sd, 0.0)
            solved = [_Solved.of(whole.minus(part), scale) for part in parts]
            errors = sum(s.errors(part) for s, part in zip(solved, parts, strict=True))
            best = int(errors.argmin())
            found.append((float(errors[best]), choice, best, columns, whole, scale, solved, parts))
        error, choice, best, columns, whole, scale, solved, parts = min(found, key=lambda f: f[0])
        full = _Solved.of(whole, scale)
        if minus is not None:  # R2 is that of the outputs, not of what is left of them
            whole = _select(total, columns, outputs, None)
            parts = [_select(fold, columns, outputs, None) for fold in self._folds]
        distance = sum(
            float(part.about(*whole.minus(part).means())[2]) for part in parts
        )  # of y from the means of the other folds
        return CrossFit(
            full.fit(best, columns, minus),
            tuple(s.fit(best, columns, minus) for s in solved),
            choice.name,
            STRENGTHS[best],
            1 - error / distance if distance > 0 else float("nan"),
        )


@dataclass(frozen=True)
class _Solved:
    """A ridge regression in the basis in which its inputs are not correlated."""

    basis: Tensor  # [d, k], scaled: standardised inputs times this are uncorrelated
    projected: Tensor  # [k, O]
    shrunk: Tensor  # [strengths, k]
    mean_x: Tensor
    mean_y: Tensor

    @classmethod
    def of(cls, sums: Sums, scale: Tensor) -> "_Solved":
        mean_x, mean_y = sums.means()
        xx, xy, _ = sums.about(mean_x, mean_y)
        values, vectors = torch.linalg.eigh(scale[:, None] * xx * scale)
        varying = values > _ROUNDING * values.max().clamp_min(1e-300)
        values, basis = values[varying], scale[:, None] * vectors[:, varying]
        penalties = torch.tensor(STRENGTHS, dtype=torch.float64)[:, None] * sums.n.sum()
        return cls(basis, basis.T @ xy, 1 / (values + penalties), mean_x, mean_y)

    def errors(self, part: Sums) -> Tensor:
        """Squared error on ``part`` for each strength, ``[strengths]``."""
        xx, xy, yy = part.about(self.mean_x, self.mean_y)
        linear = (self.projected * (self.basis.T @ xy)).sum(1)
        products = (self.basis.T @ xx @ self.basis) * (self.projected @ self.projected.T)
        return yy - 2 * self.shrunk @ linear + ((self.shrunk @ products) * self.shrunk).sum(1)

    def fit(self, strength: int, columns: Tensor, minus: Tensor | None) -> Fit:
        coefficients = self.basis @ (self.shrunk[strength][:, None] * self.projected)
        intercepts = self.mean_y - self.mean_x @ coefficients
        return Fit(columns, coefficients, intercepts, minus)
