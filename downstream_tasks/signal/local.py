"""Regressions from the ROI's surroundings: its own past, and kernel averages of other ROIs.

One map for all ROIs, an intercept for each. Imputation reads the kernel averages of the visible
ROIs in the same patch. A forecast reads the last frames of the ROI and of the kernel averages (in
which the ROI takes part); it is fitted at several places of each training clip.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from downstream_tasks.signal.clips import Batch
from downstream_tasks.signal.kernels import WIDTHS
from downstream_tasks.signal.ridge import Choice, CrossFit, CrossSums
from downstream_tasks.signal.task import SignalTask

LONGEST = 32  # frames of the past
ORDERS = (1, 2, 4, 8, 16, 24, 32)
_PLACES = 4  # of a training clip that a forecast is fitted at


class LocalInputs:
    """Inputs of the regressions, ``[D]`` for each hidden ROI and, in imputation, patch.

    Imputation: ``widths * patch_size``. Forecast: ``(1 + widths) * n_past``, the own past first,
    each with the latest frame last.
    """

    def __init__(self, task: SignalTask) -> None:
        self._weights, self._forecast = task.weights, task.is_forecast
        hiding = task.hidings[0]
        self._ahead = len(hiding.patches) * hiding.patch_size
        self.n_past = min(LONGEST, hiding.visible_frames)
        self.block = self.n_past if self._forecast else hiding.patch_size
        self.n_inputs = self.block * (len(WIDTHS) + self._forecast)
        self.n_outputs = self._ahead if self._forecast else hiding.patch_size

    def columns(self, block: int, order: int) -> np.ndarray:
        """The last ``order`` columns of a block: 0 is the own past, then come the kernels."""
        return np.arange((block + 1) * self.block - order, (block + 1) * self.block)

    def query(self, batch: Batch) -> Tensor:
        """Inputs of what is hidden, ``[B, H, K, D]``; in a forecast ``[B, R, 1, D]``."""
        weights = self._weights[batch.number]
        if self._forecast:
            return self._past(batch.shown[..., : batch.hiding.visible_frames], weights)[:, :, None]
        seen = batch.shown[:, batch.hiding.visible_rois]
        averages = torch.einsum("khv,bvt->bhkt", weights, seen)
        patches = averages.unflatten(-1, (-1, self.block))  # [B, H, widths, P, frames]
        return patches.transpose(2, 3).flatten(-2)

    def shaped(self, found: Tensor, batch: Batch) -> Tensor:
        """Predictions ``[B, H, K, n_outputs]`` of :meth:`query` as the hidden values are."""
        return found.reshape(batch.hidden.shape)

    def n_samples(self, batch: Batch) -> int:
        """How many :meth:`samples` gives, bad ROIs counted."""
        rows = len(batch.shown) * len(batch.hiding.rois)
        return rows * (len(self._places(batch)) if self._forecast else len(batch.hiding.patches))

    def _places(self, batch: Batch) -> list[int]:
        """Frames of a training clip from which on it is forecast."""
        last = batch.shown.shape[-1] - self._ahead
        return np.unique(np.linspace(self.n_past, last, _PLACES).round().astype(int)).tolist()

    def samples(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """What to fit to: inputs ``[n, D]``, outputs ``[n, n_outputs]``, ROIs ``[n]``."""
        if not self._forecast:
            x, y = self.query(batch), batch.hidden
        else:
            clips, weights = batch.whole, self._weights[batch.number]
            seen = batch.whole_seen
            places = self._places(batch)
            x = torch.stack([self._past(seen[..., :place], weights) for place in places], 2)
            y = torch.stack([clips[..., place : place + self._ahead] for place in places], 2)
        kept = batch.measured_of(y)
        return x[kept], y[kept], batch.rois_of(y)[kept]

    def _past(self, clips: Tensor, weights: Tensor) -> Tensor:
        """Inputs ``[B, R, D]`` from the end of ``clips`` ``[B, R, T]``."""
        past = clips[..., -self.n_past :]
        averages = torch.einsum("khv,bvt->bhkt", weights, past)
        return torch.cat([past[:, :, None], averages], 2).flatten(2)


@dataclass
class LocalRegression:
    """A ridge regression from :class:`LocalInputs`."""

    inputs: LocalInputs
    fitted: CrossFit
    chosen: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chosen = {"inputs": self.fitted.choice, "strength": self.fitted.strength}
        self.r2 = self.fitted.r2

    def predict(self, batch: Batch, fold: int | None) -> Tensor:
        """See :class:`task.Method`."""
        x = self.inputs.query(batch)
        return self.inputs.shaped(self.fitted.of(fold).predict(x, batch.rois_of(x)), batch)


def local_sums(task: SignalTask) -> tuple[LocalInputs, CrossSums]:
    """Inputs and their sums over the training people, computed once for all regressions."""
    if "local" not in task.shared:
        inputs = LocalInputs(task)
        sums = CrossSums(task.n_folds, task.grid[0], inputs.n_inputs, inputs.n_outputs)
        for batch in task.train:
            sums.add(*inputs.samples(batch), batch.fold)
        task.shared["local"] = inputs, sums
    return task.shared["local"]


def _orders(task: SignalTask, inputs: LocalInputs) -> list[int]:
    if not task.is_forecast:
        return [inputs.block]
    return sorted({min(order, inputs.n_past) for order in ORDERS})


def fit_own_past(task: SignalTask) -> LocalRegression:
    """Autoregression: the ROI's own last frames."""
    inputs, sums = local_sums(task)
    orders = _orders(task, inputs)
    return LocalRegression(
        inputs, sums.fit([Choice(f"{o} frames", inputs.columns(0, o)) for o in orders])
    )


def fit_kernel(task: SignalTask) -> LocalRegression:
    """One gradient kernel, of the width that predicts best."""
    inputs, sums = local_sums(task)
    first = int(task.is_forecast)
    choices = [
        Choice(
            f"width {width:g}" + (f", {order} frames" if task.is_forecast else ""),
            inputs.columns(first + i, order),
        )
        for i, width in enumerate(WIDTHS)
        for order in _orders(task, inputs)
    ]
    return LocalRegression(inputs, sums.fit(choices))


def fit_kernels(task: SignalTask) -> LocalRegression:
    """Kernels of all widths; in a forecast with the own past (multi-kernel autoregression)."""
    inputs, sums = local_sums(task)
    blocks = range(len(WIDTHS) + task.is_forecast)
    choices = [
        Choice(
            f"{order} frames",
            np.concatenate([inputs.columns(block, order) for block in blocks]),
        )
        for order in _orders(task, inputs)
    ]
    return LocalRegression(inputs, sums.fit(choices))


def best_width(task: SignalTask) -> int:
    """Place in :data:`kernels.WIDTHS` of the kernel of :func:`fit_kernel` (imputation)."""
    if "width" not in task.shared:
        text = fit_kernel(task).fitted.choice
        names = [f"width {width:g}" for width in WIDTHS]
        task.shared["width"] = names.index(text)
    return task.shared["width"]
