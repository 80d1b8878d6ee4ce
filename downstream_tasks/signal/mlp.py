"""A small supervised network on the inputs of the local regressions and the ROI's gradients.

Two hidden layers of 256, one network for all ROIs (method 10). It is trained on what the regression
on several kernels leaves of people that this was not fitted to, so that it begins where the linear
one ends: small differences that an unregularised regression uses are lost on a network. Training is
on a sample of the training people's hidden patches, capped at ``signal.mlp_samples``, and stopped
by the validation people (by a fold of the training people where there are none). The networks that
leave a fold out, for stacking, are trained for as many epochs as that one.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstream_tasks.signal.clips import Batch
from downstream_tasks.signal.local import LocalRegression, fit_kernels
from downstream_tasks.signal.task import SignalTask
from src.utils.progress import progress_bar

WIDTH, N_GRADIENTS = 256, 10
_BATCH, _PATIENCE = 256, 5
_RATE = 3e-4
_WEIGHT_DECAY = 1e-2

logger = logging.getLogger(__name__)


class _Sample(NamedTuple):
    x: Tensor  # [n, D]
    y: Tensor  # [n, O]
    left: Tensor  # [n, O]: of y by the linear regression
    rois: Tensor  # [n]
    fold: Tensor  # [n]


class _Trained(NamedTuple):
    network: nn.Module
    epochs: int
    error: float


@dataclass
class SupervisedMLP:
    """The trained networks: to all training people, and without each fold."""

    linear: LocalRegression
    gradients: Tensor  # [R, g], standardised
    scale: tuple[Tensor, Tensor]  # mean and SD of the inputs
    full: nn.Module
    without: list[nn.Module]
    device: torch.device
    r2: float
    chosen: dict[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def predict(self, batch: Batch, fold: int | None) -> Tensor:
        """See :class:`task.Method`."""
        x = self.linear.inputs.query(batch)
        rois = torch.from_numpy(batch.hiding.rois)[None, :, None].expand(x.shape[:3])
        network = self.full if fold is None else self.without[fold]
        joined = _join(x, rois, self.gradients, self.scale).to(self.device)
        more = self.linear.inputs.shaped(network(joined).cpu(), batch)
        return self.linear.predict(batch, fold) + more


def fit_mlp(task: SignalTask) -> SupervisedMLP:
    """Train on the training people, and once more without each of their folds."""
    linear = fit_kernels(task)
    train = _sample(linear, task.train, task.options.mlp_samples)
    valid = _sample(linear, task.valid, task.options.mlp_samples // 4)
    rois = torch.as_tensor(np.ascontiguousarray(task.features[:, :N_GRADIENTS])).float()
    gradients = (rois - rois.mean(0)) / rois.std(0).clamp_min(1e-12)
    if valid is None:  # the last fold stops the training in their place
        held = train.fold == task.n_folds - 1
        valid = _Sample(*(part[held] for part in train))
        fitted_to = _Sample(*(part[~held] for part in train))
    else:
        fitted_to = train
    scale = train.x.mean(0), train.x.std(0).clamp_min(1e-12)

    def ready(sample: _Sample) -> tuple[Tensor, Tensor]:
        return _join(sample.x, sample.rois, gradients, scale), sample.left

    found = _train(ready(fitted_to), ready(valid), task.options.mlp_epochs, task.device)
    full, epochs = found.network, found.epochs
    if fitted_to is not train:
        full = _train(ready(train), None, epochs, task.device).network
    without, error, distance = [], 0.0, 0.0
    for fold in range(task.n_folds):
        kept = train.fold != fold
        others, held_out = (_Sample(*(p[k] for p in train)) for k in (kept, ~kept))
        network = _train(ready(others), None, epochs, task.device, fold=fold).network
        without.append(network)
        x, left = ready(held_out)
        with torch.no_grad():
            error += float((network(x.to(task.device)).cpu() - left).double().square().sum())
        means = _roi_means(others, task.grid[0])
        distance += float((held_out.y - means[held_out.rois]).double().square().sum())
    chosen = {"epochs": epochs, "training samples": len(train.x)}
    r2 = 1 - error / distance
    return SupervisedMLP(linear, gradients, scale, full, without, task.device, r2, chosen)


def _train(
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor] | None,
    epochs: int,
    device: torch.device,
    fold: int | None = None,
) -> _Trained:
    """AdamW for ``epochs``; with ``valid`` the best epoch's network, by its error there."""
    x, y = (part.to(device) for part in train)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(x.shape[1], WIDTH),
            nn.GELU(),
            nn.Linear(WIDTH, WIDTH),
            nn.GELU(),
            nn.Linear(WIDTH, y.shape[1]),
        )
    nn.init.zeros_(network[-1].weight)  # it begins as the linear regression
    nn.init.zeros_(network[-1].bias)
    network = network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), _RATE, weight_decay=_WEIGHT_DECAY)
    steps = -(-len(x) // _BATCH)
    best, best_error, best_epoch = None, float("inf"), epochs
    if valid is not None:  # no epoch at all may be the best
        best_error, best_epoch = valid[1].square().mean().item(), 0
        best = {name: value.clone() for name, value in network.state_dict().items()}
    label = "MLP" if fold is None else f"MLP without fold {fold + 1}"
    for epoch in progress_bar(range(1, epochs + 1), desc=label, unit="epoch", leave=False):
        order = torch.randperm(len(x), generator=generator).to(device)
        for part in order.chunk(steps):
            loss = F.mse_loss(network(x[part]), y[part])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if valid is not None:
            with torch.no_grad():
                error = F.mse_loss(network(valid[0].to(device)), valid[1].to(device)).item()
            if error < best_error:
                best_error, best_epoch = error, epoch
                best = {name: value.clone() for name, value in network.state_dict().items()}
            elif epoch - best_epoch >= _PATIENCE:
                break
    if best is not None:
        network.load_state_dict(best)
    return _Trained(network.eval(), best_epoch, best_error)


def _sample(linear: LocalRegression, clips: Iterable[Batch], wanted: int) -> _Sample | None:
    """At most about ``wanted`` samples, as many of every batch in proportion; ``None`` if none."""
    inputs = linear.inputs
    n = sum(inputs.n_samples(batch) for batch in clips)
    share = min(1.0, wanted / n) if n else 0.0
    generator = torch.Generator().manual_seed(0)
    parts = []
    for batch in clips:
        x, y, rois = inputs.samples(batch)
        kept = torch.rand(len(x), generator=generator) < share
        x, y, rois = x[kept], y[kept], rois[kept]
        fold = torch.full((len(x),), -1 if batch.fold is None else batch.fold)
        left = y - linear.fitted.of(batch.fold).predict(x, rois)
        parts.append(_Sample(x, y, left, rois, fold))
    return _Sample(*(torch.cat(p) for p in zip(*parts, strict=True))) if parts else None


def _roi_means(sample: _Sample, n_rois: int) -> Tensor:
    total = torch.zeros(n_rois, sample.y.shape[1]).index_add_(0, sample.rois, sample.y)
    count = torch.zeros(n_rois).index_add_(0, sample.rois, torch.ones(len(sample.y)))
    return total / count.clamp_min(1)[:, None]


def _join(x: Tensor, rois: Tensor, gradients: Tensor, scale: tuple[Tensor, Tensor]) -> Tensor:
    """Standardised inputs and the gradients of their ROI."""
    return torch.cat([(x - scale[0]) / scale[1], gradients[rois]], -1)
