"""The baselines of both protocols: what needs no pretraining.

A new one is an entry of :data:`REGISTRY`, nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from downstream_tasks.signal.clips import Batch
from downstream_tasks.signal.frames import fit_ridge, fit_var
from downstream_tasks.signal.local import fit_kernel, fit_kernels, fit_own_past
from downstream_tasks.signal.mlp import fit_mlp
from downstream_tasks.signal.task import Method, SignalTask


@dataclass(frozen=True)
class Baseline:
    """One entry.

    Attributes:
        name: in ``signal.baselines`` and ``signal.stack``.
        imputation, forecast: title of its row; ``None`` where the protocol does not have it.
        fit: to a task; everything is chosen inside the training people.
        learns: whether anything is fitted, so that it can be stacked.
    """

    name: str
    fit: Callable[[SignalTask], Method]
    imputation: str | None = None
    forecast: str | None = None
    learns: bool = True

    def title(self, protocol: str) -> str | None:
        """Title of its row in ``protocol``."""
        return getattr(self, protocol)


@dataclass
class TrainingMean:
    """The mean of each ROI over the training people: R2 is over it."""

    means: Tensor
    chosen: dict[str, Any] = field(default_factory=dict)
    r2: float = float("nan")

    def predict(self, batch: Batch, fold: int | None) -> Tensor:
        """See :class:`task.Method`."""
        means = self.means[torch.from_numpy(batch.hiding.rois)].float()
        return means[None, :, None, None].expand(batch.hidden.shape)


@dataclass
class Persistence:
    """The last visible frame goes on."""

    chosen: dict[str, Any] = field(default_factory=dict)
    r2: float = float("nan")

    def predict(self, batch: Batch, fold: int | None) -> Tensor:
        """See :class:`task.Method`."""
        last = batch.shown[..., batch.hiding.visible_frames - 1]
        return last[:, :, None, None].expand(batch.hidden.shape)


REGISTRY: dict[str, Baseline] = {
    entry.name: entry
    for entry in (
        Baseline(
            "mean",
            lambda task: TrainingMean(task.roi_means),
            "Mean of each ROI",
            "Mean of each ROI",
            learns=False,
        ),
        Baseline("persistence", lambda _: Persistence(), None, "Persistence", learns=False),
        Baseline("kernel", fit_kernel, "Gradient kernel", "Gradient kernel"),
        Baseline("ar", fit_own_past, None, "AR"),
        Baseline("kernels", fit_kernels, "Several gradient kernels", "Multi-kernel AR"),
        Baseline("ridge", fit_ridge, "Ridge", None),
        Baseline("var", fit_var, None, "VAR"),
        Baseline("mlp", fit_mlp, "MLP (supervised)", "MLP (supervised)"),
    )
}


def names_in(protocol: str, *, learning: bool = False) -> tuple[str, ...]:
    """Names of the baselines of a protocol, or of those that are fitted."""
    return tuple(
        name
        for name, entry in REGISTRY.items()
        if entry.title(protocol) is not None and (entry.learns or not learning)
    )
