"""Value maps of attention that differ between ROIs, of low rank (method 11.3).

Attention adds up values by one matrix for all ROIs, where ridge regression has a weight of its own
for each pair of them. Here the value of a token of ROI r gets ``U (c_r * (V x))`` besides.
"""

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn


class RoiValues(nn.Module):
    """What one block adds to its values; each block has its own, as each has values of its own.

    ``up`` (U) starts at 0, so that a network begins as it does without. All three matrices have
    weight decay: it shrinks what is particular to a ROI, as ridge regression shrinks its weights.

    Args:
        rois: R.
        dim: width D of the values, all heads together.
        rank: numbers ``of_roi`` (c) per ROI.
    """

    def __init__(self, rois: int, dim: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank, bias=False)
        self.of_roi = nn.Parameter(torch.randn(rois, rank))
        self.up = nn.Linear(rank, dim, bias=False)
        trunc_normal_(self.down.weight, std=dim**-0.5)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        """Additions ``[B, N, D]`` for the input ``x`` of attention, of ``rois`` ``[B or 1, N]``."""
        return self.up(F.embedding(rois, self.of_roi) * self.down(x))


def add_roi_values(blocks: nn.ModuleList, rois: int, rank: int) -> None:
    """Give each block's attention its ``roi_values``; nothing if ``rank`` is 0.

    After all else is initialised: it draws random numbers.
    """
    for block in blocks if rank else ():
        attention = block.attn
        width = attention.num_heads * attention.head_dim
        attention.roi_values = RoiValues(rois, width, rank)
