"""Regressions with weights of their own for every ROI, from whole frames.

``ridge`` (imputation): hidden ROIs from visible ones in the same frame, or with the frames before
and after it. ``var`` (forecast): the next frames of all ROIs from the principal components of the
last ones, a vector autoregression fitted to all steps ahead at once, at every place of a clip.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from downstream_tasks.signal.clips import Batch
from downstream_tasks.signal.ridge import Choice, CrossFit, CrossSums
from downstream_tasks.signal.task import SignalTask

COMPONENTS = (10, 20, 40)
ORDERS = (1, 2, 4, 8, 16)


@dataclass
class FrameRidge:
    """A regression for each hiding, all from the same sums."""

    fitted: list[CrossFit]

    def __post_init__(self) -> None:
        self.chosen: dict[str, Any] = {
            "inputs": "; ".join(dict.fromkeys(fit.choice for fit in self.fitted)),
            "strength": float(np.exp(np.mean([np.log(fit.strength) for fit in self.fitted]))),
        }
        self.r2 = float(np.mean([fit.r2 for fit in self.fitted]))

    def predict(self, batch: Batch, fold: int | None) -> Tensor:
        """See :class:`task.Method`."""
        x = _with_neighbours(batch.shown)
        found = self.fitted[batch.number].of(fold).predict(x, torch.zeros((), dtype=torch.long))
        return found.transpose(1, 2).reshape(batch.hidden.shape)  # [B, T, H] -> [B, H, P, frames]


def fit_ridge(task: SignalTask) -> FrameRidge:
    """Ridge regression of hidden ROIs on visible ones (imputation)."""
    rois = task.grid[0]
    sums = CrossSums(task.n_folds, 1, 3 * rois, rois)
    for batch in task.train:
        x = _with_neighbours(batch.whole_seen).flatten(0, 1)
        y = batch.whole.transpose(1, 2).flatten(0, 1)
        sums.add(x, y, torch.zeros(len(x), dtype=torch.long), batch.fold)
    fitted = []
    for hiding in task.hidings:
        seen = hiding.visible_rois
        three = np.concatenate([seen, seen + rois, seen + 2 * rois])
        choices = [Choice("same frame", seen), Choice("three frames", three)]
        fitted.append(sums.fit(choices, outputs=hiding.rois))
    return FrameRidge(fitted)


def _with_neighbours(clips: Tensor) -> Tensor:
    """Frames ``[B, T, 3 R]`` of ``[B, R, T]``: each one, the one before and the one after it."""
    padded = F.pad(clips, (1, 1), mode="replicate")
    return torch.cat([clips, padded[..., :-2], padded[..., 2:]], 1).transpose(1, 2)


@dataclass
class VectorAutoregression:
    """A regression from the principal components of the last frames, the latest first."""

    mean: Tensor  # [R]
    components: Tensor  # [R, C]
    order: int
    fitted: CrossFit

    def __post_init__(self) -> None:
        self.chosen = {"inputs": self.fitted.choice, "strength": self.fitted.strength}
        self.r2 = self.fitted.r2

    def predict(self, batch: Batch, fold: int | None) -> Tensor:
        """See :class:`task.Method`."""
        seen = batch.shown[..., : batch.hiding.visible_frames]
        x = past_of(_projected(seen, self.mean, self.components), self.order)[:, -1]
        found = self.fitted.of(fold).predict(x, torch.zeros((), dtype=torch.long))
        return found.reshape(batch.hidden.shape)


def fit_var(task: SignalTask) -> VectorAutoregression:
    """Vector autoregression on principal components; order and their number are chosen."""
    hiding = task.hidings[0]
    ahead = len(hiding.patches) * hiding.patch_size
    mean, covariance = task.frame_moments
    rois, order = task.grid[0], min(max(ORDERS), hiding.visible_frames)
    n = min(max(COMPONENTS), rois)
    components = torch.linalg.eigh(covariance)[1].flip(1)[:, :n].float()
    mean = mean.float()
    sums = CrossSums(task.n_folds, 1, order * n, rois * ahead)
    for batch in task.train:
        seen = batch.whole_seen[..., :-ahead]
        past = past_of(_projected(seen, mean, components), order)
        future = batch.whole[..., order:].unfold(-1, ahead, 1)  # [B, R, places, ahead]
        y = future.transpose(1, 2).flatten(2).flatten(0, 1)
        x = past.flatten(0, 1)
        sums.add(x, y, torch.zeros(len(x), dtype=torch.long), batch.fold)
    choices = [
        Choice(f"{c} components, {o} frames", (np.arange(o)[:, None] * n + np.arange(c)).ravel())
        for c in sorted({min(c, n) for c in COMPONENTS})
        for o in sorted({min(o, order) for o in ORDERS})
    ]
    return VectorAutoregression(mean, components, order, sums.fit(choices))


def _projected(clips: Tensor, mean: Tensor, components: Tensor) -> Tensor:
    """Components ``[B, T, C]`` of clips ``[B, R, T]``."""
    return (clips.transpose(1, 2) - mean) @ components


def past_of(values: Tensor, order: int) -> Tensor:
    """The ``order`` frames up to each place, the latest first: ``[B, places, order * C]``."""
    windows = values.unfold(1, order, 1)  # [B, places, C, order]
    return windows.flip(-1).transpose(2, 3).flatten(2)
