"""Probes trained by gradient on frozen features, held in memory or in a file.

`lars_probe` is the published linear probe (method 7: LARS, batch normalisation without affine) for
every learning rate and weight decay at once; `attentive_probe` pools all tokens with one learned
query, for several learning rates at once. The validation people pick setting and epoch; everyone is
scored with the picked weights after that.
"""

import copy
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from downstream_tasks.bootstrap import ScoredRun, weighted_metrics
from downstream_tasks.heads import HeadResult, LinearMap, Problem, class_weights
from downstream_tasks.metrics import LOWER_IS_BETTER, selection_key
from downstream_tasks.tasks import AttentiveProbeConfig, LinearProbeConfig
from src.utils.progress import progress_bar
from src.utils.schedulers import WarmupCosine

_LARS_MOMENTUM = 0.9  # method 7
_LARS_TRUST, _LARS_EPS = 1e-3, 1e-8  # timm's defaults, which are those of MAE's probe
_HEAD_INIT_STD = 0.01
_BN_EPS = 1e-6
_DIMENSIONS_PER_HEAD = 64


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
        nn.init.trunc_normal_(first, std=_HEAD_INIT_STD, generator=generator)
        self.norm = nn.BatchNorm1d(n_features, affine=False, eps=_BN_EPS)
        self.weight = nn.Parameter(F.pad(first, (0, 1)).repeat(n_heads, 1, 1))  # [K, C, F + 1]

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight[..., :-1].flatten(0, 1), self.weight[..., -1].flatten()
        outputs = F.linear(self.norm(x), weight, bias)
        return outputs.view(len(x), len(self.weight), -1).transpose(0, 1)

    def head(self, k: int) -> LinearMap:
        """Head ``k`` with the normalisation folded in, on the features as given."""
        scale = torch.rsqrt(self.norm.running_var.double() + _BN_EPS)
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


class AttentiveHead(nn.Module):
    """One learned query over all tokens, then as the linear probe: ``[B, N, D]`` -> ``[B, C]``."""

    def __init__(self, dim: int, n_outputs: int, num_heads: int | None) -> None:
        super().__init__()
        num_heads = num_heads or max(1, dim // _DIMENSIONS_PER_HEAD)
        self.pool = AttentionPoolLatent(dim, out_features=0, num_heads=num_heads)
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=_BN_EPS)
        self.head = nn.Linear(dim, n_outputs)
        nn.init.trunc_normal_(self.head.weight, std=_HEAD_INIT_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.pool(tokens)))


class AttentiveHeads(nn.Module):
    """K attentive heads that start alike: ``[B, N, D]`` -> ``[K, B, C]``."""

    def __init__(
        self, dim: int, n_outputs: int, num_heads: int | None, n_heads: int, seed: int
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first = AttentiveHead(dim, n_outputs, num_heads)
        self.heads = nn.ModuleList(copy.deepcopy(first) for _ in range(n_heads))

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.stack([head(tokens) for head in self.heads])

    def head(self, k: int) -> AttentiveHead:
        """A copy of head ``k``, ready to score."""
        return copy.deepcopy(self.heads[k]).eval()


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

    linear, chosen, history = _train_grid(
        model,
        lambda factor: optimizer.step((peaks * factor).clamp_min(config.min_lr)),
        settings,
        lambda items: x[items],
        np.arange(len(x)),
        problem,
        config,
    )
    return HeadResult(linear.scores(features, problem.target.n_classes), chosen, history, linear)


def attentive_probe(
    tokens: np.ndarray,
    example_of_clip: np.ndarray,
    problem: Problem,
    config: AttentiveProbeConfig,
    device: torch.device | str = "cpu",
) -> HeadResult:
    """The attentive probe over its learning rates, trained in one pass.

    Args:
        tokens: ``[n_clips, N, D]``; may be a memory map, of which a batch is read at a time.
        example_of_clip: ``[n_clips]``; the clips of one example are averaged when it is scored.
    """
    settings = [{"lr": lr, "weight_decay": config.weight_decay} for lr in config.lr]
    model = AttentiveHeads(
        tokens.shape[2],
        max(1, problem.target.n_classes),
        config.num_heads,
        len(settings),
        problem.seed,
    ).to(device)
    optimizer = torch.optim.AdamW(
        [
            {"params": [*head.parameters()], "lr": setting["lr"]}
            for head, setting in zip(model.heads, settings, strict=True)
        ],
        weight_decay=config.weight_decay,
    )

    def update(factor: float) -> None:
        for group, setting in zip(optimizer.param_groups, settings, strict=True):
            group["lr"] = setting["lr"] * factor
        optimizer.step()

    head, chosen, history = _train_grid(
        model,
        update,
        settings,
        lambda items: _read_tokens(tokens, items, device),
        example_of_clip,
        problem,
        config,
    )
    scores = score_attentive(head, tokens, example_of_clip, problem, config.batch_size, device)
    weights = {name: value.cpu().numpy() for name, value in head.state_dict().items()}
    return HeadResult(scores, chosen, history, weights=weights)


def score_attentive(
    head: AttentiveHead,
    tokens: np.ndarray,
    example_of_clip: np.ndarray,
    problem: Problem,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Scores of every example by a trained attentive head; those of its clips are averaged."""
    outputs = _in_batches(
        head.to(device),
        lambda items: _read_tokens(tokens, items, device),
        np.arange(len(tokens)),
        batch_size,
    )
    scores = _as_scores(outputs, problem.target.n_classes)
    n_examples = len(problem.cohort.y)
    total = np.zeros((n_examples, *scores.shape[1:]))
    np.add.at(total, example_of_clip, scores)
    clips = np.bincount(example_of_clip, minlength=n_examples)
    return (total.T / clips).T


def _read_tokens(tokens: np.ndarray, items: np.ndarray, device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.asarray(tokens[items], dtype=np.float32)).to(device)


def _train_grid(
    model: LinearHeads | AttentiveHeads,
    update: Callable[[float], None],
    settings: list[dict[str, float]],
    read: Callable[[np.ndarray], Tensor],
    example_of_item: np.ndarray,
    problem: Problem,
    config: LinearProbeConfig | AttentiveProbeConfig,
) -> tuple[Any, dict[str, float], list[dict[str, float]]]:
    """Train all heads on the same shuffled batches; keep the best (setting, epoch) on validation.

    ``read`` gives the inputs of items, ``update`` takes a step with the peak learning rates times a
    factor. Returns the picked head, its setting and its learning curve.
    """
    split, target, metric = problem.split, problem.target, problem.metric
    train = np.flatnonzero(np.isin(example_of_item, split.train))
    valid = np.flatnonzero(np.isin(example_of_item, split.valid))
    y = torch.as_tensor(target.y[example_of_item])
    y = y.long() if target.n_classes else y.float()
    weights = None
    if config.class_weights and target.n_classes:
        weights = class_weights(target.y[split.train], target.n_classes)
        weights = torch.as_tensor(weights, dtype=torch.float32)
    batch = min(config.batch_size, len(train))
    per_epoch = len(train) // batch  # without the tail: batch norm needs two examples
    warmup = round(config.warmup_epochs * per_epoch)
    factor = WarmupCosine(config.epochs * per_epoch, warmup, start=0.0, peak=1.0, final=0.0)
    rng = np.random.default_rng(problem.seed)
    best_key, best_head, best = (-np.inf, -np.inf), model.head(0), (0, 0)
    curves: list[list[dict[str, float]]] = [[] for _ in settings]
    for epoch in progress_bar(range(config.epochs), desc="probe", unit="epoch", leave=False):
        order = rng.permutation(train)
        model.train()
        train_loss = np.zeros(len(settings))
        for i in range(per_epoch):
            items = order[i * batch : (i + 1) * batch]
            outputs = model(read(items))
            losses = _losses(outputs, y[items].to(outputs.device), weights, config.smoothing)
            model.zero_grad()
            losses.sum().backward()  # heads share nothing, so each gets its own gradient
            update(factor(epoch * per_epoch + i + 1))
            train_loss += losses.detach().cpu().numpy() / per_epoch
        outputs = _in_batches(model, read, valid, max(batch, config.batch_size))
        valid_loss = _losses(torch.from_numpy(outputs), y[valid], None, 0.0).numpy()
        for k, (loss, raw) in enumerate(zip(valid_loss.tolist(), outputs, strict=True)):
            value = validation_score(
                _as_scores(raw, target.n_classes), example_of_item[valid], problem
            )
            curves[k].append(
                {
                    "epoch": epoch + 1,
                    "train_loss": float(train_loss[k]),
                    "valid_loss": loss,
                    f"valid_{metric}": value,
                }
            )
            if (key := selection_key(metric, value, loss)) > best_key:
                best_key, best_head, best = key, model.head(k), (k, epoch + 1)
    return best_head, settings[best[0]] | {"epoch": best[1]}, curves[best[0]]


def validation_score(scores: np.ndarray, examples: np.ndarray, problem: Problem) -> float:
    """The problem's metric over the units of ``examples`` (which may repeat); NaN becomes worst."""
    _, pooled, y = problem.cohort.unit_mean(scores, examples)
    run = ScoredRun(problem.target.normalise(y), pooled, np.arange(len(y)))
    value = float(weighted_metrics(run, np.ones((1, len(y))))[problem.metric][0])
    if np.isnan(value):
        return np.inf if problem.metric in LOWER_IS_BETTER else -np.inf
    return value


def _losses(outputs: Tensor, y: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    """Mean loss of each head, ``[K]``: cross-entropy of ``[K, B, C]``, or squared error."""
    if y.is_floating_point():
        return (outputs[..., 0] - y).square().mean(dim=1)
    weights = None if weights is None else weights.to(outputs.device)
    return torch.stack(
        [F.cross_entropy(o, y, weight=weights, label_smoothing=smoothing) for o in outputs]
    )


@torch.no_grad()
def _in_batches(
    model: nn.Module, read: Callable[[np.ndarray], Tensor], items: np.ndarray, batch: int
) -> np.ndarray:
    """Outputs of ``items`` without training anything, along the next to last axis."""
    model.eval()
    parts = [model(read(items[i : i + batch])) for i in range(0, len(items), batch)]
    return torch.cat(parts, dim=-2).cpu().numpy()


def _as_scores(outputs: np.ndarray, n_classes: int) -> np.ndarray:
    """Probabilities ``[n, C]`` of logits, or predictions ``[n]``."""
    if n_classes == 0:
        return outputs[:, 0].astype(np.float64)
    return torch.from_numpy(outputs).double().softmax(dim=-1).numpy()
