"""Controls: what the encoder is shown in place of the clip.

Each maps clips ``[B, 1, R, T]`` and one seed per clip to clips of the same shape.
"""

import torch
from torch import Tensor


def permute_in_time(fmri: Tensor, seeds: Tensor) -> Tensor:
    """Shuffle the frames of each ROI by itself: ``fmri`` ``[B, 1, R, T]``, one seed per clip.

    The values of an ROI stay (its mean, its variance); their order and every correlation between
    ROIs go. What a model still predicts does not come from dynamics or connectivity.
    """
    shuffled = torch.empty_like(fmri)
    for clip, seed in enumerate(seeds.tolist()):
        generator = torch.Generator().manual_seed(seed)
        order = torch.rand(fmri.shape[1:], generator=generator).argsort(dim=-1)
        shuffled[clip] = fmri[clip].gather(-1, order.to(fmri.device))
    return shuffled


def hold_constant(fmri: Tensor, seeds: Tensor | None = None) -> Tensor:
    """Replace each ROI's series by its mean: ``[B, 1, R, T]``; only the ROI means are left."""
    return fmri.mean(dim=-1, keepdim=True).expand_as(fmri).contiguous()
