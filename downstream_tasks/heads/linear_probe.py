"""Linear probes: LARS on frozen features behind batch normalisation without affine (method 7).

The published one (method 8.14) has one learning rate. Of the grid, every rate and weight decay is
trained in one pass. The validation people pick setting and epoch; everyone is scored with the
picked weights after that.
"""

import logging
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstream_tasks.cohort.problem import Problem
from downstream_tasks.config import LinearProbeConfig
from downstream_tasks.heads.grid_training import BN_EPS, HEAD_INIT_STD, train_grid
from downstream_tasks.heads.result import HeadResult, LinearMap, edge_notes

logger = logging.getLogger(__name__)

_LARS_MOMENTUM = 0.9  # method 7
_FC_NORM_EPS = 1e-6  # that of the fine-tuned network
_HARDLY_MOVED = 0.05
_LARS_TRUST, _LARS_EPS = 1e-3, 1e-8  # timm's defaults, which are those of MAE's probe


class LinearHeads(nn.Module):
    """K linear heads behind one batch normalisation: ``[B, F]`` -> ``[K, B, C]``.

    They start alike, so that they differ by their settings only. The bias is one more weight, of a
    constant feature: LARS then adapts its steps too. At the learning rates LARS needs, plain SGD
    steps of the bias would diverge.
    """

    def __init__(self, n_features: int, n_outputs: int, n_heads: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        first = torch.empty(n_outputs, n_features)
        nn.init.trunc_normal_(first, std=HEAD_INIT_STD, generator=generator)
        self.norm = nn.BatchNorm1d(n_features, affine=False, eps=BN_EPS)
        self.weight = nn.Parameter(F.pad(first, (0, 1)).repeat(n_heads, 1, 1))  # [K, C, F + 1]

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight[..., :-1].flatten(0, 1), self.weight[..., -1].flatten()
        outputs = F.linear(self.norm(x), weight, bias)
        return outputs.view(len(x), len(self.weight), -1).transpose(0, 1)

    def head(self, k: int) -> LinearMap:
        """Head ``k`` with the normalisation folded in, on the features as given."""
        return _fold(self.norm, self.weight[k, :, :-1], self.weight[k, :, -1])


class PublishedHead(nn.Module):
    """One linear head behind a batch normalisation: ``[B, F]`` -> ``[1, B, C]``."""

    def __init__(self, n_features: int, n_outputs: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.norm = nn.BatchNorm1d(n_features, affine=False, eps=BN_EPS)
        self.weight = nn.Parameter(torch.empty(1, n_outputs, n_features))
        nn.init.trunc_normal_(self.weight, std=HEAD_INIT_STD, generator=generator)
        self.bias = nn.Parameter(torch.zeros(n_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(x), self.weight[0], self.bias)[None]

    def head(self, k: int) -> LinearMap:
        """The head with the normalisation folded in, on the features as given."""
        return _fold(self.norm, self.weight[k], self.bias)


class StackedLars:
    """LARS with one trust ratio, learning rate and weight decay per stacked head.

    Takes the steps that ``timm.optim.Lars(always_adapt=True)`` takes on each head alone (timm's is
    plain SGD at weight decay 0 without that flag), for all heads in a few tensor operations: one
    timm parameter group per head costs thirty times the rest of the step.
    """

    def __init__(self, weight: nn.Parameter, decays: Sequence[float]) -> None:
        self.weight = weight  # [K, ...]
        self.decays = torch.tensor(decays)[:, None, None]
        self.velocity = torch.zeros_like(weight)

    @torch.no_grad()
    def step(self, lrs: Tensor) -> None:
        """One update with the learning rates ``lrs`` ``[K]``."""
        gradient = self.weight.grad
        weight_norm = self.weight.flatten(1).norm(dim=1)[:, None, None]
        gradient_norm = gradient.flatten(1).norm(dim=1)[:, None, None]
        trust = _LARS_TRUST * weight_norm / (gradient_norm + weight_norm * self.decays + _LARS_EPS)
        trust = torch.where((weight_norm > 0) & (gradient_norm > 0), trust, 1.0)
        self.velocity.mul_(_LARS_MOMENTUM).add_((gradient + self.decays * self.weight) * trust)
        self.weight.sub_(lrs[:, None, None] * self.velocity)


def fc_norm(features: np.ndarray) -> np.ndarray:
    """LayerNorm of pooled tokens ``[n, D]``, as the fine-tuned network begins with, untrained."""
    x = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    return F.layer_norm(x, x.shape[-1:], eps=_FC_NORM_EPS).numpy()


def published_probe(
    features: np.ndarray, problem: Problem, config: LinearProbeConfig
) -> HeadResult:
    """The published linear probe (method 8.14) on pooled tokens ``[n_examples, D]``.

    LARS adapts the step of the weight; the bias, a 1-d parameter, is left to plain SGD without
    weight decay. The linear map of the result is one of :func:`fc_norm` of the features.
    """
    normalised = fc_norm(features)
    x = torch.from_numpy(normalised)
    model = PublishedHead(x.shape[1], max(1, problem.target.n_classes), problem.seed)
    start = model.weight.detach().clone()
    adapted = StackedLars(model.weight, [config.weight_decay])
    plain = torch.optim.SGD([model.bias], lr=0.0, momentum=_LARS_MOMENTUM)
    peak = config.blr * config.batch_size / 256 if config.lr is None else config.lr

    def update(factor: float) -> None:
        rate = config.min_lr + (peak - config.min_lr) * factor
        plain.param_groups[0]["lr"] = rate
        plain.step()
        adapted.step(torch.tensor([rate]))

    setting = {"lr": peak, "weight_decay": config.weight_decay}
    linear, chosen, history = train_grid(
        model, update, [setting], lambda items: x[items], np.arange(len(x)), problem, config
    )
    moved = float((model.weight.detach() - start).norm() / start.norm())
    notes = []
    if moved < _HARDLY_MOVED:
        notes.append(
            f"the published linear probe hardly trained: {config.epochs} epochs at the learning "
            f"rate {peak:.2g} moved its weights by {moved:.1g} of their norm, for a step of LARS "
            "is 0.1 % of that times the rate; compare linear_probe.recipe=grid"
        )
        logger.warning("seed %d: %s", problem.seed, notes[0])
    scores = linear.scores(normalised, problem.target.n_classes)
    trained = model.weight.numel() + model.bias.numel()
    return HeadResult(
        scores, chosen, history, linear, notes=tuple(notes), trained_parameters=trained
    )


def _fold(norm: nn.BatchNorm1d, weight: Tensor, bias: Tensor) -> LinearMap:
    """``weight`` and ``bias`` behind ``norm`` as one map."""
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    weight = weight.detach().double() * scale
    bias = bias.detach().double() - weight @ norm.running_mean.double()
    return LinearMap(weight.numpy(), bias.numpy())


def lars_grid(features: np.ndarray, problem: Problem, config: LinearProbeConfig) -> HeadResult:
    """Linear probes on ``features`` ``[n_examples, F]`` over a grid, trained in one pass."""
    x = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    settings = [
        {"blr": blr, "weight_decay": decay}
        for blr, decay in product(config.grid_blr, config.grid_weight_decay)
    ]
    model = LinearHeads(x.shape[1], max(1, problem.target.n_classes), len(settings), problem.seed)
    optimizer = StackedLars(model.weight, [setting["weight_decay"] for setting in settings])
    peaks = torch.tensor([setting["blr"] for setting in settings]) * config.batch_size / 256

    linear, chosen, history = train_grid(
        model,
        lambda factor: optimizer.step((peaks * factor).clamp_min(config.min_lr)),
        settings,
        lambda items: x[items],
        np.arange(len(x)),
        problem,
        config,
    )
    scores = linear.scores(features, problem.target.n_classes)
    grids = {"blr": config.grid_blr, "weight_decay": config.grid_weight_decay}
    return HeadResult(scores, chosen, history, linear, notes=edge_notes(chosen, grids))
