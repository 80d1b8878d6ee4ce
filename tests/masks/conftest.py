"""What the tests of masks share."""

import numpy as np
import torch
from scipy import stats

from src.masks.batch import MaskBatch
from src.masks.collator import MaskCollator
from src.masks.spatiotemporal import SpatiotemporalMasks


def make(grid=(450, 160, 16), *, seed=0, rank=0, **options):
    n_rois, n_frames, patch_size = grid
    mode = SpatiotemporalMasks(n_rois, n_frames // patch_size, **options)
    return MaskCollator(mode, seed=seed, rank=rank)


def numbered(n: int, draw: int) -> list[dict]:
    """Samples of one micro-batch, as the trainer's data set returns them."""
    return [{"fmri": torch.zeros(1, 3, 4), "draw": draw} for _ in range(n)]


def parts(masks: MaskBatch) -> tuple[np.ndarray, ...]:
    """The context and every block of targets."""
    return masks.context, *masks.blocks.values()


def on_grid(tokens: np.ndarray, collator: MaskCollator) -> np.ndarray:
    """How often each patch occurs: [B, R, P]."""
    n_rois, n_patches = collator.modes[0].n_rois, collator.modes[0].n_patches
    counts = np.zeros((len(tokens), n_rois * n_patches), dtype=int)
    np.add.at(counts, (np.arange(len(tokens))[:, None], tokens), 1)
    return counts.reshape(-1, n_rois, n_patches)


class Uniform:
    """Chi-square test that each of n things is equally often among those chosen.

    Given how many are chosen, a choice without replacement: the statistic is chi-square.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.counts, self.expected, self.variance = np.zeros(n), 0.0, 0.0

    def add(self, chosen: np.ndarray) -> None:
        """Count choices, booleans [B, n]."""
        share = chosen.mean(axis=1)
        self.counts += chosen.sum(axis=0)
        self.expected += share.sum()
        self.variance += (share * (1 - share)).sum() * self.n / (self.n - 1)

    @property
    def p_value(self) -> float:
        chi2 = ((self.counts - self.expected) ** 2).sum() / self.variance
        return stats.chi2.sf(chi2, self.n - 1)
