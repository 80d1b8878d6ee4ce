"""Pooling of tokens: to one vector of a clip, or one of each ROI."""

from torch import Tensor

LEVELS = ("pooled", "roi", "token")


def pool(tokens: Tensor, level: str, grid: tuple[int, int]) -> Tensor:
    """Tokens ``[B, N, D]`` at one of ``LEVELS``; N is R ROIs of P patches, ROI-major."""
    if level == "pooled":
        return tokens.mean(dim=1)  # [B, D]
    if level == "roi":
        return tokens.unflatten(1, grid).mean(dim=2)  # [B, R, D]
    return tokens
