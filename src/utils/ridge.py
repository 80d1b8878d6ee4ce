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


class _Sums(NamedTuple):
    """Weighted sums over samples; those of all folds have one more axis in front."""

    n: Tensor  # [S]
    x: Tensor  # [S, D_in]
    y: Tensor  # [S, D_out]
    xx: Tensor  # [D_in, D_in]
    xy: Tensor  # [D_in, D_out]
    yy: Tensor  # []

    def means(self) -> tuple[Tensor, Tensor]:
        """Means of x and y in each stratum; 0 where it has no sample."""
        n = self.n.clamp_min(1e-12)[:, None]
        return self.x / n, self.y / n

    def about(self, mean_x: Tensor, mean_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``xx``, ``xy`` and ``yy`` of samples minus the means given for their strata."""
        weighted_x, weighted_y = self.n[:, None] * mean_x, self.n[:, None] * mean_y
        shift = self.x.T @ mean_x
        xx = self.xx - shift - shift.T + weighted_x.T @ mean_x
        xy = self.xy - self.x.T @ mean_y - mean_x.T @ self.y + weighted_x.T @ mean_y
        yy = self.yy + (mean_y * (weighted_y - 2 * self.y)).sum()
        return xx, xy, yy


class RidgeSums:
    """Sums, per fold, of what a ridge regression ``[D_in] -> [D_out]`` is fitted to.

    Samples come in strata, each with an intercept of its own that is not penalised. Folds are the
    parts of the cross-validation that chooses the strength; samples of one person belong in one
    fold. Sums are float64 on the host: ``n_folds * (D_in + n_strata) * (D_in + D_out)`` numbers.
    """

    def __init__(self, n_folds: int, n_strata: int, d_in: int, d_out: int) -> None:
        shapes = _Sums(
            (n_strata,), (n_strata, d_in), (n_strata, d_out), (d_in, d_in), (d_in, d_out), ()
        )
        self._folds = _Sums(*(torch.zeros(n_folds, *s, dtype=torch.float64) for s in shapes))

    def add(self, x: Tensor, y: Tensor, folds: Tensor, strata: Tensor, weight: float = 1.0) -> None:
        """Add ``x`` ``[B, D_in]`` and ``y`` ``[B, D_out]`` in ``folds`` and ``strata`` ``[B]``."""
        x, y, folds, strata = x.cpu().double(), y.cpu().double(), folds.cpu(), strata.cpu()
        for fold in folds.unique().tolist():
            inside = folds == fold
            in_x, in_y, in_strata = x[inside], y[inside], strata[inside]
            sums = _Sums(*(of_folds[fold] for of_folds in self._folds))
            sums.n.index_add_(0, in_strata, torch.ones_like(in_x[:, 0]), alpha=weight)
            sums.x.index_add_(0, in_strata, in_x, alpha=weight)
            sums.y.index_add_(0, in_strata, in_y, alpha=weight)
            sums.xx.add_(in_x.T @ in_x, alpha=weight)
            sums.xy.add_(in_x.T @ in_y, alpha=weight)
            sums.yy.add_(in_y.square().sum(), alpha=weight)

    def fit(self) -> RidgeFit:
        """Fit at the strength with the least cross-validated error.

        With fewer than 2 folds that hold samples, the strongest. NaN if any sum is not finite.
        """
        total = _Sums(*(of_folds.sum(0) for of_folds in self._folds))
        means = total.means()
        if not all(sums.isfinite().all() for sums in total):
            return RidgeFit(torch.full_like(total.xy, torch.nan), *means)
        used = self._folds.n.sum(1).nonzero().flatten().tolist()
        best = len(STRENGTHS) - 1
        if len(used) >= 2:
            errors = sum(self._errors(total, fold) for fold in used)
            best -= int(errors.flip(0).argmin())  # of equal ones, such as all 0, the strongest
        return RidgeFit(_solve(total)[best], *means)

    def _errors(self, total: _Sums, fold: int) -> Tensor:
        """Squared error on ``fold`` of the fit to all others, for each strength."""
        inside = _Sums(*(of_folds[fold] for of_folds in self._folds))
        others = _Sums(*(a - b for a, b in zip(total, inside, strict=True)))
        xx, xy, yy = inside.about(*others.means())
        return torch.stack([yy - 2 * (c * xy).sum() + (c * (xx @ c)).sum() for c in _solve(others)])


def _solve(sums: _Sums) -> list[Tensor]:
    """Coefficients for each strength."""
    xx, xy, _ = sums.about(*sums.means())
    values, vectors = torch.linalg.eigh(xx)
    # Directions in which the inputs do not vary hold rounding errors, which must not be fitted.
    varying = values > ROUNDING * sums.xx.diagonal().max()
    values, vectors = values[varying], vectors[:, varying]
    projected = vectors.T @ xy
    penalties = [strength * values.sum() / len(xx) for strength in STRENGTHS]
    return [vectors @ (projected / (values + penalty)[:, None]) for penalty in penalties]
