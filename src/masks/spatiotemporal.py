"""The collator of pretraining: a batch of crops together with its spatiotemporal masks (spec 6)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate, get_worker_info

from src.masks.sampler import (
    PHILOX_WORDS,
    BlockSizes,
    MaskBatch,
    MaskSettings,
    Scale,
    sample_masks,
    sample_sizes,
    words_per_sample,
)
from src.utils.errors import UserError

DRAW_KEY = "draw"  # a sample may carry the number of its micro-batch under this key
SIZES, POSITIONS = 0, 1  # separate ranges of the counter of one Philox key

Batch = tuple[Any, list[torch.Tensor], list[torch.Tensor]]


class SpatiotemporalMaskCollator:
    """Collate samples and draw their masks: `collator(batch) -> (collated, [enc], [pred])`.

    Both masks are LongTensors [B, K] of token indices `n = roi * P + patch`, one of each, not
    sorted: the targets are alpha's, then beta's, then gamma's (order within: see `MaskBatch`).

    The draw is a pure function of (seed, step, rank). The step is, in this order,

    1. the argument of `at_step`,
    2. the integer that all samples of the batch, being dicts, carry under the key "draw"; it is
       left out of the collated batch. This is how a trainer stays exact over epochs, workers and
       resumed runs,
    3. `self.step`, which counts the calls and may be set. A worker of a DataLoader counts as the
       loader deals out batches, so that one pass gives the same masks for any number of workers
       (set `step` before the next pass: what workers count stays with them).

    Sizes do not depend on the rank, so that every rank does the same amount of work. Rank r draws
    the r-th part of the masks of the global batch: two ranks with a batch of 8 see the masks that
    one process sees with a batch of 16.

    Args:
        input_size: (R, T) ROIs and frames of a crop; T must be a multiple of `patch_size`.
        patch_size: frames per patch.
        enc_mask_scale: (min, max) fraction of ROIs, and of patches, of the observation block.
        pred_mask_R_scale: of all ROIs, for alpha.
        pred_mask_T_scale: of patches, for beta's and gamma's columns in each margin.
        pred_mask_T_roi_scale: of patches, for alpha's window.
        pred_mask_R_roi_scale: of C_R for beta's rows, of its complement for gamma's.
        min_keep: fewest context tokens.
        allow_overlap: as in I-JEPA, whether the context may hold targets. False takes the targets
            out of the observation block; True leaves it whole, with the targets placed as before.
        seed, rank: of the run, and of this process in it.

    Raises:
        UserError: sizes or fractions with which no valid mask exists.
    """

    def __init__(
        self,
        input_size: tuple[int, int],
        patch_size: int,
        enc_mask_scale: Scale = (0.84, 1.0),
        pred_mask_R_scale: Scale = (0.45, 0.6),
        pred_mask_T_scale: Scale = (0.0, 0.4),
        pred_mask_T_roi_scale: Scale = (0.2, 0.6),
        pred_mask_R_roi_scale: Scale = (0.15, 0.3),
        min_keep: int = 10,
        allow_overlap: bool = False,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        n_rois, n_frames = input_size
        if patch_size < 1 or n_frames % patch_size:
            raise UserError(
                f"data.crop_size is {list(input_size)}: its {n_frames} frames must be a multiple "
                f"of mask.patch_size, which is {patch_size}."
            )
        self.settings = MaskSettings(
            n_rois=n_rois,
            n_patches=n_frames // patch_size,
            enc_mask_scale=tuple(enc_mask_scale),
            pred_mask_R_scale=tuple(pred_mask_R_scale),
            pred_mask_T_scale=tuple(pred_mask_T_scale),
            pred_mask_T_roi_scale=tuple(pred_mask_T_roi_scale),
            pred_mask_R_roi_scale=tuple(pred_mask_R_roi_scale),
            min_keep=min_keep,
        )
        self.allow_overlap = allow_overlap
        self.seed = seed
        self.rank = rank
        self.step = 0
        self._calls_in_worker = 0

    def __call__(self, batch: Sequence[Any]) -> Batch:
        return self.at_step(batch, self._step_of(batch))

    def at_step(self, batch: Sequence[Any], step: int) -> Batch:
        """Collate with the masks of the given step, whatever was drawn before."""
        if _is_numbered(batch):
            batch = [{k: v for k, v in sample.items() if k != DRAW_KEY} for sample in batch]
        masks = self.sample(len(batch), step)
        context = masks.observed if self.allow_overlap else masks.context
        return (
            default_collate(batch),
            [torch.from_numpy(context)],
            [torch.from_numpy(masks.targets)],
        )

    def sizes(self, step: int) -> BlockSizes:
        """The block sizes of a step, the same on every rank."""
        return sample_sizes(self.settings, self._generator([0, 0, step, SIZES]))

    def sample(self, batch_size: int, step: int) -> MaskBatch:
        """Draw the masks of `batch_size` samples: a pure function of (seed, step, rank)."""
        sizes = self.sizes(step)
        words = self.rank * batch_size * words_per_sample(sizes.n_rois)
        positions = self._generator([words // PHILOX_WORDS, 0, step, POSITIONS])
        return sample_masks(sizes, batch_size, positions, with_observed=self.allow_overlap)

    def _generator(self, counter: list[int]) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self.seed % 2**64, counter=counter))

    def _step_of(self, batch: Sequence[Any]) -> int:
        if _is_numbered(batch):
            draws = {int(sample[DRAW_KEY]) for sample in batch}
            if len(draws) > 1:
                raise ValueError(f"one batch holds samples of several draws: {sorted(draws)}")
            return draws.pop()
        worker = get_worker_info()
        if worker is None:
            self.step += 1
            return self.step - 1
        self._calls_in_worker += 1
        return self.step + worker.id + (self._calls_in_worker - 1) * worker.num_workers


def _is_numbered(batch: Sequence[Any]) -> bool:
    return isinstance(batch[0], Mapping) and DRAW_KEY in batch[0]
