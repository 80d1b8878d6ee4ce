"""What the tests of masks share."""

import torch

from src.masks.collator import SpatiotemporalMaskCollator
from src.masks.spatiotemporal import MaskSettings


def make(grid=(450, 160, 16), *, seed=0, rank=0, **options):
    n_rois, n_frames, patch_size = grid
    settings = MaskSettings(n_rois, n_frames // patch_size, **options)
    return SpatiotemporalMaskCollator(settings, seed=seed, rank=rank)


def numbered(n: int, draw: int) -> list[dict]:
    """Samples of one micro-batch, as the trainer's data set returns them."""
    return [{"fmri": torch.zeros(1, 3, 4), "draw": draw} for _ in range(n)]
