"""The attentive probe: one learned query over all tokens of a frozen encoder."""

import copy

import numpy as np
import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from downstream_tasks.cohort.problem import Problem
from downstream_tasks.config import AttentiveProbeConfig
from downstream_tasks.heads.grid_training import (
    BN_EPS,
    HEAD_INIT_STD,
    as_scores,
    in_batches,
    train_grid,
)
from downstream_tasks.heads.result import HeadResult, edge_notes

_DIMENSIONS_PER_HEAD = 64


class AttentiveHead(nn.Module):
    """One learned query over all tokens, then as the linear probe: ``[B, N, D]`` -> ``[B, C]``."""

    def __init__(self, dim: int, n_outputs: int, num_heads: int | None) -> None:
        super().__init__()
        num_heads = num_heads or max(1, dim // _DIMENSIONS_PER_HEAD)
        self.pool = AttentionPoolLatent(dim, out_features=0, num_heads=num_heads)
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=BN_EPS)
        self.head = nn.Linear(dim, n_outputs)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_INIT_STD)
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

    head, chosen, history = train_grid(
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
    trained = sum(parameter.numel() for parameter in head.parameters())
    notes = edge_notes(chosen, {"lr": config.lr})
    return HeadResult(
        scores, chosen, history, weights=weights, notes=notes, trained_parameters=trained
    )


def score_attentive(
    head: AttentiveHead,
    tokens: np.ndarray,
    example_of_clip: np.ndarray,
    problem: Problem,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Scores of every example by a trained attentive head; those of its clips are averaged."""
    outputs = in_batches(
        head.to(device),
        lambda items: _read_tokens(tokens, items, device),
        np.arange(len(tokens)),
        batch_size,
    )
    scores = as_scores(outputs, problem.target.n_classes)
    n_examples = len(problem.cohort.y)
    total = np.zeros((n_examples, *scores.shape[1:]))
    np.add.at(total, example_of_clip, scores)
    clips = np.bincount(example_of_clip, minlength=n_examples)
    return (total.T / clips).T


def _read_tokens(tokens: np.ndarray, items: np.ndarray, device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.asarray(tokens[items], dtype=np.float32)).to(device)
