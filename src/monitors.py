"""Learning monitors on held-out people: a falling loss is no evidence of learning (spec 9)."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from src.config import Config
from src.datasets.fmri import FMRIDataset
from src.helper import Networks, init_collator, init_dataset
from src.models.jepa import jepa_targets
from src.models.layers import apply_masks

COLUMNS = ("r2", "variance", "variance_share", "rankme")
N_MASKS = 4  # drawn once, the same for every sample and every measurement
SHRUNK = 100  # a between-sample variance this many times smaller than at the start is a collapse


@torch.no_grad()
def measure(
    networks: Networks,
    batches: Iterable[Tensor],
    masks: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
) -> dict[str, float]:
    """What the networks know about samples that they were not trained on.

    All samples share the same masks, so that a position can be compared across samples. Memory does
    not grow with the number of samples: sums are kept, in float64 on the host.

    Args:
        batches: clips ``[B, 1, R, T]``.
        masks: pairs of token indices (context ``[K]``, targets ``[Q]``).

    Returns:
        - ``r2``: 1 - squared error of the predictor / squared distance of the targets from their
          mean at each position. That mean is taken over these S samples and the distance corrected
          by S / (S - 1), so a predictor that knows just the true mean, where things are, has 0.
        - ``variance``: variance of the targets across samples at a fixed position, averaged over
          positions and features. It falls to 0 in a collapse, which ratios and ranks can hide.
        - ``variance_share``: the same as a share of the variance over samples and positions.
        - ``rankme``: effective rank of the targets after each position's mean is taken out
          (RankMe: exponential of the entropy of the singular values' distribution).

        All are NaN with fewer than 2 samples.
    """
    masks = [(context.to(device), target.to(device)) for context, target in masks]
    samples = 0
    position_sum: Tensor | float = 0.0  # [N, D]
    second_moment: Tensor | float = 0.0  # [D, D]
    squared_error = 0.0
    squared_targets = [0.0] * len(masks)
    for x in batches:
        x = x.to(device, non_blocking=True)
        with autocast():
            targets = jepa_targets(networks.target_encoder, x).float()  # [B, N, D]
        flat = targets.flatten(0, 1)
        second_moment = second_moment + (flat.T @ flat).cpu().double()
        position_sum = position_sum + targets.sum(0).cpu().double()
        samples += len(x)
        for index, (context, target) in enumerate(masks):
            masks_enc, masks_pred = context.expand(len(x), -1), target.expand(len(x), -1)
            with autocast():
                seen = networks.encoder(x, masks_enc)
                prediction = networks.predictor(seen, masks_enc, masks_pred)
            hidden = apply_masks(targets, masks_pred)
            squared_error += (prediction.float() - hidden).square().sum().item()
            squared_targets[index] += hidden.square().sum().item()

    if samples < 2:
        return dict.fromkeys(COLUMNS, math.nan)
    position_mean = position_sum / samples  # [N, D]
    tokens, width = position_mean.shape
    distance = sum(
        total - samples * position_mean[target.cpu()].square().sum().item()
        for total, (_, target) in zip(squared_targets, masks, strict=True)
    )
    within = second_moment - samples * position_mean.T @ position_mean
    grand_mean = position_mean.mean(0)
    total = second_moment.trace() / (samples * tokens) - grand_mean.square().sum()
    variance = (within.trace() / (samples * tokens)).item()
    unbiased = samples / (samples - 1)
    return {
        "r2": 1.0 - squared_error / (distance * unbiased) if distance > 0 else math.nan,
        "variance": variance * unbiased / width,
        "variance_share": (variance / total).item(),
        "rankme": _rankme(within),
    }


def held_out_clips(config: Config, stats: dict[str, Any] | None) -> FMRIDataset:
    """Clips of the held-out split, enough of each run to make ``monitor_clips`` together."""
    runs = init_dataset(config, config.logging.monitor_split, stats, clips="center")
    per_run = math.ceil(config.logging.monitor_clips / len(runs))
    return init_dataset(config, config.logging.monitor_split, runs.stats, clips=per_run)


def held_out_batches(held_out: FMRIDataset, config: Config) -> Iterator[Tensor]:
    """At most ``monitor_clips`` held-out clips, evenly spread, in batches ``[B, 1, R, T]``."""
    count = min(len(held_out), config.logging.monitor_clips)
    chosen = torch.linspace(0, len(held_out) - 1, count).round().long().tolist()
    for start in range(0, count, config.data.batch_size):
        items = chosen[start : start + config.data.batch_size]
        yield torch.stack([held_out[i]["fmri"] for i in items])


def fixed_masks(config: Config) -> list[tuple[Tensor, Tensor]]:
    """The same few masks at every measurement, other than the training's."""
    collator = init_collator(config, seed=config.meta.seed + 1)
    drawn = [collator.sample(1, step=k) for k in range(N_MASKS)]
    return [(torch.from_numpy(m.context[0]), torch.from_numpy(m.targets[0])) for m in drawn]


def verdict(first: dict[str, float], last: dict[str, float]) -> str:
    """One line on what the monitors say about a run."""
    if math.isnan(first["variance"]):
        return "not measured: the learning monitors need at least 2 held-out clips."
    problems = []
    if not last["r2"] > 0:
        problems.append(
            f"held-out R2 is {last['r2']:.3f}: the predictor has learned where things are, "
            "and nothing about the signal"
        )
    if not last["variance"] * SHRUNK > first["variance"]:
        problems.append(
            f"the targets' variance between clips fell from {first['variance']:.2g} to "
            f"{last['variance']:.2g}: the representation has collapsed"
        )
    if problems:
        return "NOT LEARNING: " + "; ".join(problems) + "."
    return (
        f"learning: held-out R2 over the position mean {last['r2']:+.3f}, variance between "
        f"clips {first['variance']:.3g} -> {last['variance']:.3g}, RankMe {last['rankme']:.1f}."
    )


def _rankme(second_moment: Tensor) -> float:
    """RankMe from ``X^T X`` ``[D, D]``: its eigenvalues are the squared singular values of X."""
    if not second_moment.isfinite().all():
        return math.nan
    squared = torch.linalg.eigvalsh(second_moment)
    # X^T X was summed in float32: below this, an eigenvalue is its rounding error.
    singular = squared[squared > 1e-6 * squared.max()].sqrt()
    share = singular / singular.sum()
    return torch.exp(-(share * share.log()).sum()).item()
