"""A small supervised network on the inputs of the local regressions and the ROI's gradients.

Two hidden layers of 256, one network for all ROIs (method 10). It adds to what the regression on
several kernels predicts, and begins as that one: small differences that an unregularised regression
uses are lost on a network. Where noise is added to what is seen, each epoch draws it anew. Training
is on a sample of the training people's hidden patches, at most ``signal.mlp_samples``, and the best
epoch is that of the validation people (of a fold of the training people where there are none). The
networks that leave a fold out, for stacking, are trained for as many epochs, and neither they nor
the regression that they add to know of that fold.
"""

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
_BATCH, _PATIENCE = 256, 8
_FEWEST_STEPS = 50  # an epoch: batches are smaller where there are few samples
_RATE, _WEIGHT_DECAY, _CLIP_GRAD = 3e-4, 1e-2, 1.0


class _Sample(NamedTuple):
    x: Tensor  # [n, D]
    y: Tensor  # [n, O]
    rois: Tensor  # [n]
    hidings: Tensor  # [n]
    fold: Tensor  # [n]

    def of(self, kept: Tensor) -> "_Sample":
        return _Sample(*(part[kept] for part in self))


class _Noise:
    """White noise of each ROI as the inputs have it: own past and averages of noisy ROIs."""

    def __init__(self, task: SignalTask, sd: float) -> None:
        self._sd, self._generator = sd, torch.Generator().manual_seed(0)
        blocks = len(task.weights[0]) + task.is_forecast
        self._roots = torch.zeros(len(task.hidings), task.grid[0], blocks, blocks)
        for hiding, weights, roots in zip(task.hidings, task.weights, self._roots, strict=True):
            maps = weights.double()  # [widths, H, V]
            if task.is_forecast:
                maps = torch.cat([torch.eye(task.grid[0])[None], maps])
            covariance = torch.einsum("khv,lhv->hkl", maps, maps)
            values, vectors = torch.linalg.eigh(covariance)
            roots[torch.from_numpy(hiding.rois)] = (
                vectors * values.clamp_min(0).sqrt()[:, None]
            ).float()

    def add(self, sample: _Sample) -> Tensor:
        """Inputs ``[n, D]`` with noise, another one at every call."""
        if not self._sd:
            return sample.x
        roots = self._roots[sample.hidings, sample.rois]
        frames = sample.x.shape[1] // roots.shape[1]
        drawn = torch.randn(len(roots), roots.shape[1], frames, generator=self._generator)
        return sample.x + self._sd * (roots @ drawn).flatten(1)


class _Added(NamedTuple):
    """A network, and the epoch that it is of."""

    network: nn.Module
    shift: Tensor  # mean of the inputs
    scale: Tensor  # their SD
    gradients: Tensor  # [R, g], standardised
    epoch: int

    def __call__(self, x: Tensor, rois: Tensor) -> Tensor:
        joined = torch.cat([(x - self.shift) / self.scale, self.gradients[rois]], -1)
        return self.network(joined.to(next(self.network.parameters()).device))


@dataclass
class SupervisedMLP:
    """The trained networks: to all training people, and without each fold."""

    linear: LocalRegression
    full: _Added
    without: list[_Added]
    r2: float
    chosen: dict[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def predict(self, batch: Batch, fold: int | None) -> Tensor:
        """See :class:`task.Method`."""
        x = self.linear.inputs.query(batch)
        network = self.full if fold is None else self.without[fold]
        more = self.linear.inputs.shaped(network(x, batch.rois_of(x)).cpu(), batch)
        return self.linear.predict(batch, fold) + more


def fit_mlp(task: SignalTask) -> SupervisedMLP:
    """Train on the training people, and once more without each of their folds."""
    trainer = _Trainer(task)
    train = _sample(trainer.linear, task.train, task.options.mlp_samples)
    valid = _sample(trainer.linear, task.valid, task.options.mlp_samples // 4, noisy=True)
    epochs = task.options.mlp_epochs
    if valid is not None:
        full = trainer.train(train, epochs, valid=valid)
    else:  # the last fold stops the training in their place
        fold = task.n_folds - 1
        held = train.of(train.fold == fold)
        held = held._replace(x=trainer.noise.add(held))
        stopped = trainer.train(train.of(train.fold != fold), epochs, valid=held, fold=fold)
        full = trainer.train(train, stopped.epoch)
    without, error, distance = [], 0.0, 0.0
    for fold in range(task.n_folds):
        held = train.fold == fold
        others, held_out = train.of(~held), train.of(held)
        network = trainer.train(others, full.epoch, fold=fold)
        without.append(network)
        x = trainer.noise.add(held_out)
        with torch.no_grad():
            left = trainer.left(held_out, x, fold) - network(x, held_out.rois).cpu()
        error += float(left.double().square().sum())
        means = _roi_means(others, task.grid[0])
        distance += float((held_out.y - means[held_out.rois]).double().square().sum())
    chosen = {"epochs": full.epoch, "training samples": len(train.x)}
    return SupervisedMLP(trainer.linear, full, without, 1 - error / distance, chosen)


class _Trainer:
    """What all trainings of a task share."""

    def __init__(self, task: SignalTask) -> None:
        self.linear, self.noise = fit_kernels(task), _Noise(task, task.options.noise)
        self._device, self._epochs = task.device, task.options.mlp_epochs
        rois = torch.as_tensor(np.ascontiguousarray(task.features[:, :N_GRADIENTS])).float()
        self._gradients = (rois - rois.mean(0)) / rois.std(0).clamp_min(1e-12)

    def left(self, sample: _Sample, x: Tensor, fold: int | None) -> Tensor:
        """What the regression that left ``fold`` out leaves of ``sample`` by the inputs ``x``."""
        return sample.y - self.linear.fitted.of(fold).predict(x, sample.rois)

    def train(
        self,
        train: _Sample,
        epochs: int,
        valid: _Sample | None = None,
        fold: int | None = None,
    ) -> _Added:
        """AdamW for ``epochs``, the rate falling to 0 at ``signal.mlp_epochs`` of them.

        With ``valid`` the network is that of the best epoch there; before the first one, it is 0.
        """
        x = self.noise.add(train)
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = nn.Sequential(
                nn.Linear(x.shape[1] + self._gradients.shape[1], WIDTH),
                nn.GELU(),
                nn.Linear(WIDTH, WIDTH),
                nn.GELU(),
                nn.Linear(WIDTH, train.y.shape[1]),
            ).to(self._device)
        nn.init.zeros_(network[-1].weight)  # it begins as the linear regression
        nn.init.zeros_(network[-1].bias)
        moments = x.mean(0), x.std(0).clamp_min(1e-12)
        found = _Added(network, *moments, self._gradients, epochs)
        optimizer = torch.optim.AdamW(network.parameters(), _RATE, weight_decay=_WEIGHT_DECAY)
        steps = min(max(-(-len(x) // _BATCH), _FEWEST_STEPS), len(x))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * self._epochs)
        best, best_error, best_epoch = None, float("inf"), epochs
        if valid is not None:
            left_of_valid = self.left(valid, valid.x, fold)
            best_error, best_epoch = left_of_valid.square().mean().item(), 0
            best = _copy(network)
        label = "MLP" if fold is None else f"MLP without fold {fold + 1}"
        for epoch in progress_bar(range(1, epochs + 1), desc=label, unit="epoch", leave=False):
            if epoch > 1:
                x = self.noise.add(train)
            left = self.left(train, x, fold).to(self._device)
            for part in torch.randperm(len(x), generator=generator).chunk(steps):
                loss = F.mse_loss(found(x[part], train.rois[part]), left[part.to(left.device)])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), _CLIP_GRAD)
                optimizer.step()
                schedule.step()
            if valid is not None:
                with torch.no_grad():
                    guess = found(valid.x, valid.rois).cpu()
                error = F.mse_loss(guess, left_of_valid).item()
                if error < best_error:
                    best, best_error, best_epoch = _copy(network), error, epoch
                elif epoch - best_epoch >= _PATIENCE:
                    break
        if best is not None:
            network.load_state_dict(best)
        return found._replace(network=network.eval(), epoch=best_epoch)


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _sample(
    linear: LocalRegression, clips: Iterable[Batch], wanted: int, noisy: bool = False
) -> _Sample | None:
    """At most about ``wanted`` samples, as many of every batch in proportion; ``None`` if none."""
    inputs = linear.inputs
    n = sum(inputs.n_samples(batch) for batch in clips)
    share = min(1.0, wanted / n) if n else 0.0
    generator = torch.Generator().manual_seed(0)
    parts = []
    for batch in clips:
        x, y, rois = inputs.samples(batch if noisy else batch.clean)
        kept = torch.rand(len(x), generator=generator) < share
        fold = torch.full((len(x),), -1 if batch.fold is None else batch.fold)
        parts.append(_Sample(x, y, rois, torch.full_like(rois, batch.number), fold).of(kept))
    return _Sample(*(torch.cat(p) for p in zip(*parts, strict=True))) if parts else None


def _roi_means(sample: _Sample, n_rois: int) -> Tensor:
    total = torch.zeros(n_rois, sample.y.shape[1]).index_add_(0, sample.rois, sample.y)
    count = torch.zeros(n_rois).index_add_(0, sample.rois, torch.ones(len(sample.y)))
    return total / count.clamp_min(1)[:, None]
