"""Tokens of a clip at a level: every one of them, or what a readout of the registry keeps."""

import torch
from torch import Tensor

from downstream_tasks.features.registry import REGISTRY, names_of

LEVELS = (*names_of("readout"), "token")


def pool(tokens: Tensor, level: str, grid: tuple[int, int]) -> Tensor:
    """Tokens ``[B, N, D]`` at one of ``LEVELS``; N is R ROIs of P patches, ROI-major."""
    if level == "token":
        return tokens
    return REGISTRY[level].function(tokens.unflatten(1, grid))


def pooled_shape(level: str, grid: tuple[int, int], width: int) -> tuple[int, ...]:
    """Shape of one clip's features at a level, of ``grid`` (R, P) and ``width`` D."""
    return tuple(pool(torch.zeros(1, grid[0] * grid[1], width), level, grid).shape[1:])
