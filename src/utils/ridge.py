"""Ridge regression from sums: memory does not grow with the number of samples."""

import torch
from torch import Tensor

STRENGTHS = tuple(10.0**k for k in range(-4, 5))  # times the mean variance of the inputs
ROUNDING = 1e-10  # of a second moment: float32 inputs have no smaller variance


class RidgeSums:
    """Sums, per fold, of what a ridge regression ``[D_in] -> [D_out]`` is fitted to.

    Samples come in strata, each with an intercept of its own that is not penalised. Folds are the
    parts of the cross-validation that chooses the strength; samples of one person belong in one
    fold. Sums are float64 on the host: ``n_folds * (D_in + n_strata) * (D_in + D_out)`` numbers.
    """

    def __init__(self, n_folds: int, n_strata: int, d_in: int, d_out: int) -> None:
        self.d_in = d_in
        width = d_in + n_strata  # inputs, then an indicator of each stratum
        self._xx = torch.zeros(n_folds, width, width, dtype=torch.float64)
        self._xy = torch.zeros(n_folds, width, d_out, dtype=torch.float64)
        self._yy = torch.zeros(n_folds, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor, folds: Tensor, stratum: int, weight: float = 1.0) -> None:
        """Add ``x`` ``[B, D_in]`` and ``y`` ``[B, D_out]`` of one stratum, in ``folds`` ``[B]``."""
        x, y, folds = x.cpu().double(), y.cpu().double(), folds.cpu()
        indicators = x.new_zeros(len(x), self._xx.shape[1] - self.d_in)
        indicators[:, stratum] = 1.0
        x = torch.cat([x, indicators], dim=1)
        for fold in folds.unique().tolist():
            inside = folds == fold
            self._xx[fold] += weight * x[inside].T @ x[inside]
            self._xy[fold] += weight * x[inside].T @ y[inside]
            self._yy[fold] += weight * y[inside].square().sum()

    def fit(self) -> Tensor:
        """Coefficients ``[D_in, D_out]`` at the strength with the least cross-validated error.

        With fewer than 2 folds that hold samples, the strongest. NaN if any sum is not finite.
        """
        xx, xy = self._xx.sum(0), self._xy.sum(0)
        if not (xx.isfinite().all() and xy.isfinite().all()):
            return torch.full_like(xy[: self.d_in], torch.nan)
        used = (self._xx.diagonal(dim1=1, dim2=2).sum(1) > 0).nonzero().flatten().tolist()
        best = len(STRENGTHS) - 1
        if len(used) >= 2:
            errors = torch.stack([self._errors(xx, xy, fold) for fold in used]).sum(0)
            best = int(errors.argmin())
        return self._solve(xx, xy)[best][: self.d_in]

    def _errors(self, xx: Tensor, xy: Tensor, fold: int) -> Tensor:
        """Squared error on ``fold`` of the fit to all others, for each strength."""
        inside_xx, inside_xy = self._xx[fold], self._xy[fold]
        return torch.stack(
            [
                self._yy[fold] - 2 * (c * inside_xy).sum() + (c * (inside_xx @ c)).sum()
                for c in self._solve(xx - inside_xx, xy - inside_xy)
            ]
        )

    def _solve(self, xx: Tensor, xy: Tensor) -> list[Tensor]:
        """Coefficients and below them the intercepts, for each strength."""
        d = self.d_in
        counts = xx.diagonal()[d:].clamp_min(1e-12)
        mean_x, mean_y = xx[d:, :d] / counts[:, None], xy[d:] / counts[:, None]  # per stratum
        centred_xx = xx[:d, :d] - mean_x.T @ xx[d:, :d]
        centred_xy = xy[:d] - mean_x.T @ xy[d:]
        values, vectors = torch.linalg.eigh(centred_xx)
        # Directions in which the inputs do not vary hold rounding errors, which must not be fitted.
        varying = values > ROUNDING * xx.diagonal()[:d].max()
        values, vectors = values[varying], vectors[:, varying]
        projected = vectors.T @ centred_xy
        solutions = []
        for strength in STRENGTHS:
            penalty = strength * values.sum() / d
            coefficients = vectors @ (projected / (values + penalty)[:, None])
            solutions.append(torch.cat([coefficients, mean_y - mean_x @ coefficients]))
        return solutions
