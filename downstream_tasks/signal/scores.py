"""Scores of predicted signal: R2 and r of every person, of every ROI and network."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from downstream_tasks.signal.clips import Batch

_ROUNDING = 1e-10  # predictions with less of the signal's power are constant


@dataclass
class Scores:
    """Sums over hidden values of each person and ROI, float64 ``[people, R, 6]``.

    They are: number, true, predicted, true squared, predicted squared, true times predicted; values
    minus the ROI's mean over the training people.
    """

    sums: np.ndarray

    @classmethod
    def empty(cls, people: int, rois: int) -> "Scores":
        """No values yet."""
        return cls(np.zeros((people, rois, 6)))

    def add(self, batch: Batch, predicted: Tensor, means: Tensor) -> None:
        """Add predictions of the hidden values of ``batch``; ``means`` ``[R]`` are the ROIs'."""
        of_roi = means[torch.from_numpy(batch.hiding.rois)][None, :, None, None]
        true, guess = batch.hidden.double() - of_roi, predicted.double() - of_roi
        parts = (torch.ones_like(true), true, guess, true**2, guess**2, true * guess)
        sums = torch.stack([part.sum((2, 3)) for part in parts], -1)  # [B, H, 6]
        sums = (sums * batch.measured[..., None]).numpy()
        np.add.at(self.sums, (batch.people[:, None], batch.hiding.rois[None]), sums)

    def r2(self, rois: np.ndarray | None = None) -> np.ndarray:
        """1 - SSE / SST of each person, SST about the training means; NaN where nothing is hidden.

        ``rois`` are those that count, by default all.
        """
        return r2_of(self._of(rois).sum(1))

    def r(self, rois: np.ndarray | None = None) -> np.ndarray:
        """Correlation of true and predicted values of each person."""
        return r_of(self._of(rois).sum(1))

    def of_rois(self, people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """R2 and r of each ROI, over all values of some people together."""
        sums = self.sums[people].sum(0)
        return r2_of(sums), r_of(sums)

    def _of(self, rois: np.ndarray | None) -> np.ndarray:
        return self.sums if rois is None else self.sums[:, rois]


def r2_of(sums: np.ndarray) -> np.ndarray:
    """R2 from sums ``[..., 6]``."""
    _, _, _, yy, pp, yp = np.moveaxis(sums, -1, 0)
    return 1 - _ratio(yy + pp - 2 * yp, yy)


def r_of(sums: np.ndarray) -> np.ndarray:
    """Pearson correlation from sums ``[..., 6]``; NaN of a constant."""
    n, y, p, yy, pp, yp = np.moveaxis(sums, -1, 0)
    spread = np.maximum(n * yy - y**2, 0) * np.maximum(n * pp - p**2, 0)
    varies = pp > _ROUNDING * yy
    return _ratio(n * yp - y * p, np.where(varies, np.sqrt(spread), 0))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
