"""Ridge regression from sums: memory does not grow with the number of samples."""

from typing import NamedTuple

import torch
from torch import Tensor

STRENGTHS = tuple(10.0**k for k in range(-4, 5))  # times the mean variance of the inputs
ROUNDING = 1e-10  # of a second moment: float32 inputs have no smaller variance


class RidgeFit(NamedTuple):
    """A linear map and, for each stratum, the means of what it was fitted to."""

    coefficients: Tensor  # [D_in, D_out]
    mean_x: Tensor  # [S, D_in]
    mean_y: Tensor  # [S, D_out]

    def predict(self, x: Tensor, strata: Tensor) -> Tensor:
        """Predict ``[B, D_out]`` from ``x`` ``[B, D_in]``, each of one of the ``strata`` ``[B]``.

        The means are on the device of the fit, and so must the arguments be.
        """
        return self.mean_y[strata] + (x - self.mean_x[strata]) @ self.coefficients


class Sums(NamedTuple):
    """Weighted sums over samples in strata, float64 on the host; of several folds one axis more.

    Outputs are kept apart, so that some of them can be regressed without the others.
    """

    n: Tensor  # [S]
    x: Tensor  # [S, D_in]
    y: Tensor  # [S, D_out]
    xx: Tensor  # [D_in, D_in]
    xy: Tensor  # [D_in, D_out]
    yy: Tensor  # [D_out], sums of squares

    @classmethod
    def zeros(cls, n_folds: int, n_strata: int, d_in: int, d_out: int) -> "Sums":
        """Of ``n_folds`` folds without samples."""
        shapes = ((n_strata,), (n_strata, d_in), (n_strata, d_out), (d_in, d_in), (d_in, d_out))
        return cls(*(torch.zeros(n_folds, *s, dtype=torch.float64) for s in (*shapes, (d_out,))))

    def fold(self, fold: int) -> "Sums":
        """A view of one fold."""
        return Sums(*(of_folds[fold] for of_folds in self))

    def total(self) -> "Sums":
        """Of all folds."""
        return Sums(*(of_folds.sum(0) for of_folds in self))

    def add(self, x: Tensor, y: Tensor, strata: Tensor, weight: float = 1.0) -> None:
        """Add doubles ``x`` ``[n, D_in]`` and ``y`` ``[n, D_out]`` of strata ``[n]``, in place."""
        self.n.index_add_(0, strata, torch.ones_like(x[:, 0]), alpha=weight)
        self.x.index_add_(0, strata, x, alpha=weight)
        self.y.index_add_(0, strata, y, alpha=weight)
        self.xx.addmm_(x.T, x, alpha=weight)
        self.xy.addmm_(x.T, y, alpha=weight)
        self.yy.add_(y.square().sum(0), alpha=weight)

    def minus(self, other: "Sums") -> "Sums":
        """Of the samples that are not in ``other``."""
        return Sums(*(a - b for a, b in zip(self, other, strict=True)))

    def means(self) -> tuple[Tensor, Tensor]:
        """Means of x and y in each stratum; 0 where it has no sample."""
        n = self.n.clamp_min(1e-12)[:, None]
        return self.x / n, self.y / n

    def about(self, mean_x: Tensor, mean_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``xx``, ``xy`` and all of ``yy`` of samples minus the means given for their strata."""
        weighted_x, weighted_y = self.n[:, None] * mean_x, self.n[:, None] * mean_y
        shift = self.x.T @ mean_x
        xx = self.xx - shift - shift.T + weighted_x.T @ mean_x
        xy = self.xy - self.x.T @ mean_y - mean_x.T @ self.y + weighted_x.T @ mean_y
        yy = self.yy.sum() + (mean_y * (weighted_y - 2 * self.y)).sum()
        return xx, xy, yy


class RidgeSums:
    """Sums, per fold, of what a ridge regression ``[D_in] -> [D_out]`` is fitted to.

    Samples come in strata, each with an intercept of its own that is not penalised. Folds are the
    parts of the cross-validation that chooses the strength; samples of one person belong in one
    fold. Sums are float64 on the host: ``n_folds * (D_in + n_strata) * (D_in + D_out)`` numbers.
    """

    def __init__(self, n_folds: int, n_strata: int, d_in: int, d_out: int) -> None:
        self._folds = Sums.zeros(n_folds, n_strata, d_in, d_out)

    def add(self, x: Tensor, y: Tensor, folds: Tensor, strata: Tensor, weight: float = 1.0) -> None:
        """Add ``x`` ``[B, D_in]`` and ``y`` ``[B, D_out]`` in ``folds`` and ``strata`` ``[B]``."""
        x, y, folds, strata = x.cpu().double(), y.cpu().double(), folds.cpu(), strata.cpu()
        for fold in folds.unique().tolist():
            inside = folds == fold
            self._folds.fold(fold).add(x[inside], y[inside], strata[inside], weight)

    def fit(self) -> RidgeFit:
        """Fit at the strength with the least cross-validated error.

        With fewer than 2 folds that hold samples, the strongest. NaN if any sum is not finite.
        """
        total = self._folds.total()
        means = total.means()
        if not all(sums.isfinite().all() for sums in total):
            return RidgeFit(torch.full_like(total.xy, torch.nan), *means)
        used = self._folds.n.sum(1).nonzero().flatten().tolist()
        best = len(STRENGTHS) - 1
        if len(used) >= 2:
            errors = sum(self._errors(total, fold) for fold in used)
            best -= int(errors.flip(0).argmin())  # of equal ones, such as all 0, the strongest
        return RidgeFit(_solve(total)[best], *means)

    def _errors(self, total: Sums, fold: int) -> Tensor:
        """Squared error on ``fold`` of the fit to all others, for each strength."""
        inside = self._folds.fold(fold)
        others = total.minus(inside)
        xx, xy, yy = inside.about(*others.means())
        return torch.stack([yy - 2 * (c * xy).sum() + (c * (xx @ c)).sum() for c in _solve(others)])


def _solve(sums: Sums) -> list[Tensor]:
    """Coefficients for each strength."""
    xx, xy, _ = sums.about(*sums.means())
    values, vectors = torch.linalg.eigh(xx)
    # Directions in which the inputs do not vary hold rounding errors, which must not be fitted.
    varying = values > ROUNDING * sums.xx.diagonal().max()
    values, vectors = values[varying], vectors[:, varying]
    projected = vectors.T @ xy
    penalties = [strength * values.sum() / len(xx) for strength in STRENGTHS]
    return [vectors @ (projected / (values + penalty)[:, None]) for penalty in penalties]
