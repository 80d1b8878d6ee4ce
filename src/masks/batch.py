"""Masks of a batch, and what the modes that draw them share."""

from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol

import numpy as np

PHILOX_WORDS = 4  # 64-bit words per value of the counter of numpy's Philox generator


@dataclass(frozen=True)
class MaskBatch:
    """Token indices ``n = roi * P + patch``, int64 ``[B, K]``.

    Attributes:
        context: apart from the targets.
        blocks: the target tokens by kind; the kinds are those of ``src.masks.draw``.
        observed: where ``allow_overlap`` asks for it, the context with the targets in it.
    """

    context: np.ndarray
    blocks: dict[str, np.ndarray]
    observed: np.ndarray | None = None

    @property
    def seen(self) -> np.ndarray:
        """What the encoder is given: ``[B, K]``."""
        return self.context if self.observed is None else self.observed

    @property
    def targets(self) -> np.ndarray:
        """All blocks, one after the other: ``[B, K]``."""
        return np.concatenate(list(self.blocks.values()), axis=1)


class MaskMode(Protocol):
    """A way to draw masks on a grid of R ROIs x P patches; its settings are checked on creation."""

    n_rois: int
    n_patches: int

    @property
    def words_per_sample(self) -> int:
        """The 64-bit random words that ``place`` uses for a sample, see :func:`whole_counts`."""

    def sizes(self, generator: np.random.Generator) -> Any:
        """Draw what all samples of a batch share."""

    def place(self, sizes: Any, batch_size: int, generator: np.random.Generator) -> MaskBatch:
        """Place blocks of these sizes in each sample.

        A sample uses exactly ``words_per_sample`` words of the generator: two half batches drawn
        one after the other are the whole batch.
        """


def whole_counts(words: int) -> int:
    """Round a number of random words up to whole steps of the Philox counter."""
    return PHILOX_WORDS * ceil(words / PHILOX_WORDS)


def random_words(mode: MaskMode, batch_size: int, generator: np.random.Generator) -> np.ndarray:
    """The words of every sample: uint64 ``[B, words_per_sample]``."""
    shape = (batch_size, mode.words_per_sample)
    return generator.integers(0, 2**64 - 1, size=shape, dtype=np.uint64, endpoint=True)


def random_order(words: np.ndarray) -> np.ndarray:
    """Return a uniformly random order of range(n) for random words uint64 ``[..., n]``.

    Each word gives its low bits to its own index, so that sorting the words orders the indices:
    half the time of an argsort. The 50 or so bits left are enough for ties never to matter.
    """
    n = words.shape[-1]
    index_bits = np.uint64(2 ** n.bit_length() - 1)
    keys = (words & ~index_bits) | np.arange(n, dtype=np.uint64)
    keys.sort(axis=-1)
    return (keys & index_bits).view(np.int64)


def block(first_tokens: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Tokens of rows ``[B, ..., M]`` x columns ``[B, ..., C]``, column after column: ``[B, K]``.

    A row is given by its first token, ``roi * P``.
    """
    # columns outside, rows inside: a long inner loop takes a third of the time of a short one
    grid = columns[..., :, None] + first_tokens[..., None, :]
    return grid.reshape(len(grid), -1)
