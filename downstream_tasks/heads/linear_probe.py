"""The linear probe: LARS on frozen features behind batch normalisation without affine (method 7).

Every learning rate and weight decay of the grid is trained in one pass. The validation people pick
setting and epoch; everyone is scored with the picked weights after that.
"""

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

_LARS_MOMENTUM = 0.9  # method 7
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
        scale = torch.rsqrt(self.norm.running_var.double() + BN_EPS)
        weight = self.weight[k, :, :-1].detach().double() * scale
        bias = self.weight[k, :, -1].detach().double() - weight @ self.norm.running_mean.double()
        return LinearMap(weight.numpy(), bias.numpy())


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


def lars_probe(features: np.ndarray, problem: Problem, config: LinearProbeConfig) -> HeadResult:
    """The linear probe on ``features`` ``[n_examples, F]`` over its grid, trained in one pass."""
    x = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    settings = [
        {"blr": blr, "weight_decay": decay}
        for blr, decay in product(config.blr, config.weight_decay)
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
    grids = {"blr": config.blr, "weight_decay": config.weight_decay}
    return HeadResult(scores, chosen, history, linear, notes=edge_notes(chosen, grids))
