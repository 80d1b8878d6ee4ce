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


class _Sums(NamedTuple):
    n: Tensor  # [S]
    x: Tensor  # [S, D_in]
    y: Tensor  # [S, D_out]
    xx: Tensor  # [D_in, D_in]
    xy: Tensor  # [D_in, D_out]
    yy: Tensor  # [D_out], sums of squares

    def minus(self, other: "_Sums") -> "_Sums":
        return _Sums(*(a - b for a, b in zip(self, other, strict=True)))

    def select(self, columns: Tensor, outputs: Tensor, minus: Tensor | None) -> "_Sums":
        """Sums of some inputs and outputs, or of what input columns ``minus`` leave of those."""
        x, y, yy = self.x[:, columns], self.y[:, outputs], self.yy[outputs]
        xx = self.xx[columns][:, columns]
        xy = self.xy[columns][:, outputs]
        if minus is not None:
            y, xy = y - self.x[:, minus], xy - self.xx[columns][:, minus]
            yy = yy - 2 * self.xy[minus, outputs] + self.xx[minus, minus]
        return _Sums(self.n, x, y, xx, xy, yy)

    def means(self) -> tuple[Tensor, Tensor]:
        """Means of each stratum; 0 where it has no sample."""
        n = self.n.clamp_min(1e-12)[:, None]
        return self.x / n, self.y / n

    def about(self, mean_x: Tensor, mean_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``xx``, ``xy`` and total ``yy`` of samples minus these means of their strata."""
        n = self.n[:, None]
        cross = self.x.T @ mean_x
        xx = self.xx - cross - cross.T + mean_x.T @ (n * mean_x)
        xy = self.xy - self.x.T @ mean_y - mean_x.T @ self.y + mean_x.T @ (n * mean_y)
        yy = self.yy.sum() + (mean_y * (n * mean_y - 2 * self.y)).sum()
        return xx, xy, yy


class CrossSums:
    """Sums, per fold, of inputs ``[D_in]`` and outputs ``[D_out]``, float64 on the host.

    They are ``n_folds * (n_strata + D_in) * (D_in + D_out)`` numbers.
    """

    def __init__(self, n_folds: int, n_strata: int, d_in: int, d_out: int) -> None:
        shapes = ((n_strata,), (n_strata, d_in), (n_strata, d_out), (d_in, d_in))
        shapes = (*shapes, (d_in, d_out), (d_out,))
        self._folds = [
            _Sums(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))
            for _ in range(n_folds)
        ]

    def add(self, x: Tensor, y: Tensor, strata: Tensor, fold: int) -> None:
        """Add ``x`` ``[n, D_in]`` and ``y`` ``[n, D_out]`` of strata ``[n]``, all of one fold."""
        x, y, sums = x.double(), y.double(), self._folds[fold]
        sums.n.index_add_(0, strata, torch.ones(len(x), dtype=torch.float64))
        sums.x.index_add_(0, strata, x)
        sums.y.index_add_(0, strata, y)
        sums.xx.addmm_(x.T, x)
        sums.xy.addmm_(x.T, y)
        sums.yy.add_(y.square().sum(0))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean ``[D_in]`` and covariance of all inputs, whatever their stratum."""
        total = self._total()
        n = total.n.sum()
        mean = total.x.sum(0) / n
        return mean, total.xx / n - mean[:, None] * mean

    def _total(self) -> _Sums:
        return _Sums(*(torch.stack(parts).sum(0) for parts in zip(*self._folds, strict=True)))

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
        total = self._total()
        places = np.arange(total.y.shape[1]) if outputs is None else outputs
        outputs = torch.as_tensor(places)
        minus = None if minus is None else torch.as_tensor(minus)
        found = []
        for choice in choices:
            columns = torch.as_tensor(choice.columns)
            whole = total.select(columns, outputs, minus)
            parts = [fold.select(columns, outputs, minus) for fold in self._folds]
            sd = (whole.about(*whole.means())[0].diagonal() / whole.n.sum()).clamp_min(0).sqrt()
            scale = torch.where(sd > 0, 1 / sd, 0.0)
            solved = [_Solved.of(whole.minus(part), scale) for part in parts]
            errors = sum(s.errors(part) for s, part in zip(solved, parts, strict=True))
            best = int(errors.argmin())
            found.append((float(errors[best]), choice, best, columns, whole, scale, solved, parts))
        error, choice, best, columns, whole, scale, solved, parts = min(found, key=lambda f: f[0])
        distance = sum(
            float(part.about(*whole.minus(part).means())[2]) for part in parts
        )  # of y from the means of the other folds
        if minus is not None:  # R2 is that of the outputs, not of what is left of them
            plain = [fold.select(columns, outputs, None) for fold in self._folds]
            all_of_it = total.select(columns, outputs, None)
            distance = sum(float(p.about(*all_of_it.minus(p).means())[2]) for p in plain)
        full = _Solved.of(whole, scale)
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
    def of(cls, sums: _Sums, scale: Tensor) -> "_Solved":
        mean_x, mean_y = sums.means()
        xx, xy, _ = sums.about(mean_x, mean_y)
        values, vectors = torch.linalg.eigh(scale[:, None] * xx * scale)
        varying = values > _ROUNDING * values.max().clamp_min(1e-300)
        values, basis = values[varying], scale[:, None] * vectors[:, varying]
        penalties = torch.tensor(STRENGTHS, dtype=torch.float64)[:, None] * sums.n.sum()
        return cls(basis, basis.T @ xy, 1 / (values + penalties), mean_x, mean_y)

    def errors(self, part: _Sums) -> Tensor:
        """Squared error on ``part`` for each strength, ``[strengths]``."""
        xx, xy, yy = part.about(self.mean_x, self.mean_y)
        linear = (self.projected * (self.basis.T @ xy)).sum(1)
        products = (self.basis.T @ xx @ self.basis) * (self.projected @ self.projected.T)
        return yy - 2 * self.shrunk @ linear + ((self.shrunk @ products) * self.shrunk).sum(1)

    def fit(self, strength: int, columns: Tensor, minus: Tensor | None) -> Fit:
        coefficients = self.basis @ (self.shrunk[strength][:, None] * self.projected)
        intercepts = self.mean_y - self.mean_x @ coefficients
        return Fit(columns, coefficients, intercepts, minus)
