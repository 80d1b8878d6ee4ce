"""Train heads of several settings on the same batches; keep the best on validation."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstream_tasks.cohort.problem import Problem, validation_score
from downstream_tasks.config import AttentiveProbeConfig, LinearProbeConfig
from downstream_tasks.scoring.metrics import selection_key
from src.utils.progress import progress_bar
from src.utils.schedulers import WarmupCosine

HEAD_INIT_STD = 0.01
BN_EPS = 1e-6


class StackedHeads(Protocol):
    """K heads of one shape: a module ``[B, ...]`` -> ``[K, B, C]``."""

    def head(self, k: int) -> Any:
        """Head ``k`` as it is now, to be kept."""

    def __call__(self, x: Tensor) -> Tensor: ...
    def train(self, mode: bool = True) -> Any: ...
    def zero_grad(self) -> None: ...


def train_grid(
    model: StackedHeads,
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
    weights = problem.class_weights
    weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float32)
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
        outputs = in_batches(model, read, valid, max(batch, config.batch_size))
        valid_loss = _losses(torch.from_numpy(outputs), y[valid], None, 0.0).numpy()
        for k, (loss, raw) in enumerate(zip(valid_loss.tolist(), outputs, strict=True)):
            value = validation_score(
                as_scores(raw, target.n_classes), example_of_item[valid], problem
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


def _losses(outputs: Tensor, y: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    """Mean loss of each head, ``[K]``: cross-entropy of ``[K, B, C]``, or squared error."""
    if y.is_floating_point():
        return (outputs[..., 0] - y).square().mean(dim=1)
    weights = None if weights is None else weights.to(outputs.device)
    return torch.stack(
        [F.cross_entropy(o, y, weight=weights, label_smoothing=smoothing) for o in outputs]
    )


@torch.no_grad()
def in_batches(
    model: nn.Module, read: Callable[[np.ndarray], Tensor], items: np.ndarray, batch: int
) -> np.ndarray:
    """Outputs of ``items`` without training anything, along the next to last axis."""
    model.eval()
    parts = [model(read(items[i : i + batch])) for i in range(0, len(items), batch)]
    return torch.cat(parts, dim=-2).cpu().numpy()


def as_scores(outputs: np.ndarray, n_classes: int) -> np.ndarray:
    """Probabilities ``[n, C]`` of logits, or predictions ``[n]``."""
    if n_classes == 0:
        return outputs[:, 0].astype(np.float64)
    return torch.from_numpy(outputs).double().softmax(dim=-1).numpy()
