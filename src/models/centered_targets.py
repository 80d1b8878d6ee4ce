"""Targets without what the position alone tells: minus a running mean, over a running SD.

Where positions explain most of the features' variance, a predictor lowers its loss by naming the
position (method 9). ``meta.targets: centered`` takes the mean of each position out (method 11.4).
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

RATE = 0.02  # of an optimizer step in the running statistics
EPS = 1e-5  # added to a variance, as in LayerNorm


class CenteredTargets(nn.Module):
    """Running mean of the features at each position, and variance of their deviations from it.

    The target encoder's output is known at the target tokens only, so the mean of a position is
    updated in the steps in which it is a target. The first update is the value itself, the next
    ones average until there are 1 / :data:`RATE` of them, from then on that is the rate. At a
    position that never was a target nothing is known, and its target is the mean of all centred
    ones, 0.

    It is float32 whatever the precision of the step. At the published size (N = 4500, D = 768) the
    mean takes 13.2 MiB and the sums of a step as much; ``mean`` alone grows the checkpoint.

    Args:
        tokens: N of the grid.
        width: D of the encoder.
    """

    mean: Tensor  # [N, D]
    updates: Tensor  # [N]
    variance: Tensor  # [D]
    variance_updates: Tensor  # []
    sums: Tensor  # [N + 1, D + 1]

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(tokens, width))
        self.register_buffer("updates", torch.zeros(tokens))
        self.register_buffer("variance", torch.zeros(width))
        self.register_buffer("variance_updates", torch.zeros(()))
        # Of the step that runs: features and their number at each position, then the squared
        # deviations and theirs. One tensor, so that processes exchange it at once.
        self.register_buffer("sums", torch.zeros(tokens + 1, width + 1), persistent=False)

    @torch.no_grad()
    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Targets of ``features`` ``[B, Q, D]`` at ``masks`` ``[B, Q]``, by what was known before.

        The features are kept for :meth:`update`.
        """
        seen = (self.updates > 0)[masks].unsqueeze(-1)  # [B, Q, 1]
        deviation = torch.where(seen, features - self.mean[masks], 0)
        tokens, flat = masks.flatten(), features.flatten(0, 1).float()
        self.sums[:-1, :-1].index_add_(0, tokens, flat)
        self.sums[:-1, -1].index_add_(0, tokens, torch.ones_like(flat[:, 0]))
        self.sums[-1, :-1] += deviation.float().square().sum((0, 1))
        self.sums[-1, -1] += seen.sum()
        return deviation / self.deviation

    @property
    def deviation(self) -> Tensor:
        """SD of the features about their position's mean, ``[D]``; 1 while it is not known."""
        return torch.where(self.variance_updates > 0, (self.variance + EPS).sqrt(), 1)

    def restore(self, targets: Tensor, masks: Tensor) -> Tensor:
        """Features that ``targets`` ``[B, Q, D]`` at ``masks`` stand for: undo :meth:`forward`."""
        return targets * self.deviation + self.mean[masks]

    @torch.no_grad()
    def update(self, distributed: bool) -> None:
        """Take in what an optimizer step has seen, in all processes if it is ``distributed``."""
        if distributed:
            dist.all_reduce(self.sums)
        sums, count = self.sums[:-1, :-1], self.sums[:-1, -1]
        self.updates += count > 0
        self.mean.lerp_(sums / count.clamp(min=1)[:, None], _rate(self.updates, count)[:, None])
        squares, count = self.sums[-1, :-1], self.sums[-1, -1]
        self.variance_updates += count > 0
        self.variance.lerp_(squares / count.clamp(min=1), _rate(self.variance_updates, count))
        self.sums.zero_()


def _rate(updates: Tensor, count: Tensor) -> Tensor:
    """Weight of the new value in the ``updates``-th update; 0 where there is none."""
    return (1 / updates.clamp(min=1)).clamp(min=RATE) * (count > 0)
