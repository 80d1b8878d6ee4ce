"""The collator of pretraining: a batch of clips together with its masks (method 6)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from .batch import PHILOX_WORDS, MaskBatch, MaskMode

DRAW_KEY = "draw"  # every sample carries the number of its micro-batch under this key
SIZES, POSITIONS = 0, 1  # separate ranges of the counter of one Philox key

Batch = tuple[dict[str, Any], list[torch.Tensor], list[torch.Tensor]]


class MaskCollator:
    """Collate samples and draw their masks: ``collator(batch) -> (collated, [enc], [pred])``.

    Both masks are LongTensors ``[B, K]`` of token indices ``n = roi * P + patch``, one of each, not
    sorted: the targets come block after block.

    The draw is a pure function of (seed, step, rank), and the collator has no state. The step is
    the integer that all samples of a batch carry under the key ``draw``, which is left out of the
    collated batch; so masks are the same for any number of loader processes and after a resume.

    Sizes do not depend on the rank, so that every rank does the same amount of work. Rank r draws
    the r-th part of the masks of the global batch: two ranks with a batch of 8 see the masks that
    one process sees with a batch of 16.

    Args:
        modes: how masks are drawn; several alternate by step.
        seed, rank: of the run, and of this process in it.
    """

    def __init__(self, *modes: MaskMode, seed: int = 0, rank: int = 0) -> None:
        self.modes = modes
        self.seed = seed
        self.rank = rank

    def __call__(self, batch: Sequence[Mapping[str, Any]]) -> Batch:
        draws = {int(sample[DRAW_KEY]) for sample in batch}
        if len(draws) > 1:
            raise ValueError(f"one batch holds samples of several draws: {sorted(draws)}")
        masks = self.sample(len(batch), step=draws.pop())
        samples = [{k: v for k, v in sample.items() if k != DRAW_KEY} for sample in batch]
        return (
            default_collate(samples),
            [torch.from_numpy(masks.seen)],
            [torch.from_numpy(masks.targets)],
        )

    def mode(self, step: int) -> MaskMode:
        """Return the mode whose turn it is."""
        return self.modes[step % len(self.modes)]

    def sizes(self, step: int) -> Any:
        """Draw the block sizes of a step, the same on every rank."""
        return self.mode(step).sizes(self._generator([0, 0, step, SIZES]))

    def sample(self, batch_size: int, step: int) -> MaskBatch:
        """Draw the masks of ``batch_size`` samples: a pure function of (seed, step, rank)."""
        mode = self.mode(step)
        words = self.rank * batch_size * mode.words_per_sample
        positions = self._generator([words // PHILOX_WORDS, 0, step, POSITIONS])
        return mode.place(self.sizes(step), batch_size, positions)

    def examples(self, n: int) -> list[MaskBatch]:
        """Draw masks of one sample in each of the first ``n`` steps; of more to show every mode."""
        return [self.sample(1, step) for step in range(max(n, len(self.modes)))]

    def _generator(self, counter: list[int]) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self.seed % 2**64, counter=counter))


SpatiotemporalMaskCollator = MaskCollator  # its name while there was one mode
