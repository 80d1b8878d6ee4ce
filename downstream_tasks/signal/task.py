"""What all methods of a protocol share: hidings, training clips, distances of ROIs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from downstream_tasks.signal.clips import Batch
from downstream_tasks.signal.hiding import Hiding
from downstream_tasks.signal.kernels import distances, kernel_weights
from downstream_tasks.signal.ridge import CrossSums


class Method(Protocol):
    """A fitted method.

    Attributes:
        chosen: settings that were chosen inside the training people, by name.
        r2: cross-validated over the training people; NaN where nothing was.
    """

    chosen: dict[str, Any]
    r2: float

    def predict(self, batch: Batch, fold: int | None) -> Tensor:
        """The hidden values ``[B, H, K, patch_size]``, from what ``batch`` shows.

        By the fit that left ``fold`` out; ``None``: by that to all training people.
        """


@dataclass
class SignalTask:
    """One protocol on one split, and what was computed once for several methods.

    Attributes:
        train: clips of the training people, in ``n_folds`` folds of people.
        valid: clips of the validation people, by which the training of a network is stopped.
        features: gradients (or centroids) of the ROIs ``[R, G]``.
        options: the section ``signal`` of the task.
        device: where networks are trained.
    """

    hidings: Sequence[Hiding]
    train: Iterable[Batch]
    valid: Iterable[Batch]
    n_folds: int
    features: np.ndarray
    options: Any
    device: torch.device
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def grid(self) -> tuple[int, int]:
        return self.hidings[0].grid

    @property
    def patch_size(self) -> int:
        return self.hidings[0].patch_size

    @property
    def is_forecast(self) -> bool:
        return self.hidings[0].is_forecast

    @cached_property
    def weights(self) -> list[Tensor]:
        """Kernels of each hiding, ``[widths, H, V]``."""
        apart = distances(self.features)
        return [kernel_weights(apart, h.rois, h.visible_rois) for h in self.hidings]

    @cached_property
    def roi_means(self) -> Tensor:
        """Mean of the hidden values of each ROI over the training people, float64 ``[R]``.

        R2 is over these: who predicts them, and nothing else, has 0.
        """
        rois = self.grid[0]
        total, count = (torch.zeros(rois, dtype=torch.float64) for _ in range(2))
        for batch in self.train:
            kept = batch.measured.double()
            place = torch.from_numpy(batch.hiding.rois)
            total.index_add_(0, place, (batch.hidden.double().sum((2, 3)) * kept).sum(0))
            count.index_add_(0, place, kept.sum(0) * batch.hidden[0, 0].numel())
        return total / count.clamp_min(1)

    @cached_property
    def frame_moments(self) -> tuple[Tensor, Tensor]:
        """Mean ``[R]`` and covariance ``[R, R]`` of the frames of the training clips."""
        sums = CrossSums(self.n_folds, 1, self.grid[0], 1)
        for batch in self.train:
            frames = batch.whole.transpose(1, 2).flatten(0, 1)
            nothing = torch.zeros(len(frames), dtype=torch.long)
            sums.add(frames, frames[:, :1], nothing, batch.fold)
        return sums.moments()
