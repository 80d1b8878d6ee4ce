"""Mode ``multiblock``: I-JEPA's masks on the grid of ROIs x patches, the paper's baseline.

As in I-JEPA (arXiv 2301.08243), target blocks of one size are rectangles anywhere on the grid, one
large rectangle is the context, and the targets are taken out of it. Rows are neighbours in the
atlas's order. Differences, on purpose:

* An aspect ratio is relative to the grid's shape, so that 1 is a block like the grid. On I-JEPA's
  square grid this is the same; on 450 x 10 tokens, squares would be cut at 10 and cover little.
* Blocks reach the last row and the last column too.
* The targets are the union of the blocks, in one pass of the predictor, where I-JEPA has a pass for
  each block: it costs less, and no token counts more for lying in several blocks.
* I-JEPA cuts ordered lists of context tokens to the shortest of the batch, which keeps the last
  rows out of the context (method 8.1). Here many layouts are drawn for a batch and divided into
  cells of equal size by their numbers of target and context tokens. The samples take layouts of one
  cell, and tokens beyond the smallest number in it are given up, each with the same probability.
  As all cells are equally likely, so are all layouts: that of a sample is distributed as if it had
  been drawn alone.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..utils.errors import UserError
from .batch import MaskBatch, random_words, whole_counts
from .scales import Scale, check_scale

N_LAYOUTS = 512  # per batch
N_GROUPS = 4  # by number of targets; each of them by number of context tokens
LEAST_USABLE = 0.1  # share of the layouts that must leave min_keep, so that cells hold some


@dataclass(frozen=True)
class MultiblockMasks:
    """One large context block and several target blocks; the defaults are I-JEPA's values.

    Args:
        n_rois, n_patches: R and P.
        multiblock_context_scale: (min, max) fraction of the grid in the context block, which has
            the grid's shape.
        multiblock_target_scale: fraction of the grid in each target block.
        multiblock_aspect_ratio: (min, max) of a target block: (rows / R) / (columns / P).
        multiblock_targets: number of target blocks.
        min_keep: fewest context tokens; layouts that leave fewer are not used.
        allow_overlap: whether the context block stays whole, targets and all.

    Raises:
        UserError: numbers out of their range, or a ``min_keep`` that hardly any layout leaves.
    """

    n_rois: int
    n_patches: int
    multiblock_context_scale: Scale = (0.85, 1.0)
    multiblock_target_scale: Scale = (0.15, 0.2)
    multiblock_aspect_ratio: Scale = (0.75, 1.5)
    multiblock_targets: int = 4
    min_keep: int = 4
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        check_scale("multiblock_context_scale", self.multiblock_context_scale)
        check_scale("multiblock_target_scale", self.multiblock_target_scale)
        low, high = self.multiblock_aspect_ratio
        if not 0 < low <= high:
            raise UserError(
                f"mask.multiblock_aspect_ratio is {[low, high]}: expected [min, max] with "
                "0 < min <= max."
            )
        for u_aspect in np.linspace(0.0, 1.0, 5):  # smallest context, largest targets
            layouts = self._draw_layouts([0.0, 1.0, u_aspect], np.random.default_rng(0))
            usable = (layouts.n_context >= self.min_keep).mean()
            if usable < LEAST_USABLE:
                raise UserError(
                    f"mask.min_keep is {self.min_keep}: with the largest target blocks only "
                    f"{100 * usable:.0f} % of the layouts leave as many context tokens; lower "
                    "mask.min_keep, mask.multiblock_targets or mask.multiblock_target_scale, or "
                    "raise mask.multiblock_context_scale."
                )

    @property
    def words_per_sample(self) -> int:
        """A layout, and which tokens of context and targets are given up."""
        return whole_counts(3)

    def sizes(self, generator: np.random.Generator) -> "Layouts":
        """Draw the sizes of the blocks and a cell of layouts, once for a batch."""
        layouts = self._draw_layouts(generator.random(3).tolist(), generator)
        cell = np.flatnonzero(layouts.n_context >= self.min_keep)
        for count in (layouts.n_targets, layouts.n_context):
            groups = np.array_split(cell[count[cell].argsort()], N_GROUPS)
            cell = groups[generator.integers(N_GROUPS)]
        return layouts.take(cell)

    def place(self, sizes: "Layouts", batch_size: int, generator: np.random.Generator) -> MaskBatch:
        """Take a layout for each sample."""
        words = random_words(self, batch_size, generator)
        layouts = sizes.take((words[:, 0] % np.uint64(len(sizes.n_context))).astype(np.int64))
        observed, targets = (
            blocks.fill(self.n_rois, self.n_patches)
            for blocks in (layouts.context, layouts.targets)
        )
        n_context, n_targets = sizes.n_context.min(), sizes.n_targets.min()
        whole = sizes.context.height * sizes.context.width
        return MaskBatch(
            context=_choose(observed & ~targets, n_context, words[:, 1]),
            blocks={"target": _choose(targets, n_targets, words[:, 2])},
            observed=_choose(observed, whole, words[:, 1]) if self.allow_overlap else None,
        )

    def _draw_layouts(self, u: list[float], generator: np.random.Generator) -> "Layouts":
        """Draw layouts, of sizes between their minimum (u = 0) and maximum (u = 1)."""
        context_scale, target_scale, aspect_ratio = (
            low + part * (high - low)
            for part, (low, high) in zip(
                u,
                (
                    self.multiblock_context_scale,
                    self.multiblock_target_scale,
                    self.multiblock_aspect_ratio,
                ),
                strict=True,
            )
        )
        context = self._draw_rectangles(context_scale, 1.0, 1, generator)
        targets = self._draw_rectangles(
            target_scale, aspect_ratio, self.multiblock_targets, generator
        )
        overlap = targets.count_inside(context, self.n_patches)
        whole = Rectangles(
            np.zeros((1, 1), int), np.zeros((1, 1), int), self.n_rois, self.n_patches
        )
        return Layouts(
            context,
            targets,
            n_context=context.height * context.width - overlap,
            n_targets=targets.count_inside(whole, self.n_patches),
        )

    def _draw_rectangles(
        self, scale: float, aspect_ratio: float, n: int, generator: np.random.Generator
    ) -> "Rectangles":
        height, width = (
            min(max(round(length * fraction**0.5), 1), length)
            for length, fraction in (
                (self.n_rois, scale * aspect_ratio),
                (self.n_patches, scale / aspect_ratio),
            )
        )
        shape = (N_LAYOUTS, n)
        top = generator.integers(self.n_rois - height + 1, size=shape)
        left = generator.integers(self.n_patches - width + 1, size=shape)
        return Rectangles(top, left, height, width)


class Rectangles(NamedTuple):
    """Rectangles of one size, n in each of L layouts."""

    top: np.ndarray  # int [L, n], first row
    left: np.ndarray  # int [L, n], first column
    height: int
    width: int

    def take(self, which: np.ndarray) -> "Rectangles":
        """Those of some of the layouts."""
        return self._replace(top=self.top[which], left=self.left[which])

    def fill(self, n_rows: int, n_columns: int) -> np.ndarray:
        """Where their union is: bool ``[L, P, R]``, so that the inner loop is the long one."""
        rows = _within(self.top[..., None], self.height, n_rows)  # [L, n, R]
        columns = _within(self.left[..., None], self.width, n_columns)  # [L, n, P]
        union = np.zeros((len(self.top), n_columns, n_rows), dtype=bool)
        for i in range(self.top.shape[1]):
            union |= columns[:, i, :, None] & rows[:, i, None, :]
        return union

    def count_inside(self, frame: "Rectangles", n_columns: int) -> np.ndarray:
        """Count the tokens of their union inside the layout's frame, column by column: ``[L]``."""
        order = self.top.argsort(axis=1)
        ends = frame.top, frame.top + frame.height
        top = np.take_along_axis(self.top, order, axis=1)
        top, bottom = np.clip(top, *ends), np.clip(top + self.height, *ends)
        left = np.take_along_axis(self.left, order, axis=1)
        framed = _within(frame.left, frame.width, n_columns)  # [L or 1, P]
        counted_to = np.zeros((len(top), n_columns), dtype=int)  # row, in each column
        count = np.zeros_like(counted_to)
        for i in range(top.shape[1]):
            here = framed & _within(left[:, [i]], self.width, n_columns)
            count += here * (bottom[:, [i]] - np.maximum(top[:, [i]], counted_to))
            counted_to = np.where(here, bottom[:, [i]], counted_to)
        return count.sum(axis=1)


class Layouts(NamedTuple):
    """Ways to place the blocks, L of them."""

    context: Rectangles  # one in each
    targets: Rectangles
    n_context: np.ndarray  # int [L], tokens that the targets leave of the context block
    n_targets: np.ndarray  # int [L], tokens in the targets' union

    def take(self, which: np.ndarray) -> "Layouts":
        """Select layouts by indices."""
        return Layouts(
            self.context.take(which),
            self.targets.take(which),
            self.n_context[which],
            self.n_targets[which],
        )


def _within(first: np.ndarray, length: int, n: int) -> np.ndarray:
    """Which of range(n) lie in the ``length`` numbers from ``first`` ``[..., 1]`` on."""
    numbers = np.arange(n)
    return (numbers >= first) & (numbers < first + length)


def _choose(present: np.ndarray, n: int, words: np.ndarray) -> np.ndarray:
    """Choose n of the tokens present in each sample, bool ``[B, P, R]``: ``[B, n]``.

    A systematic sample, every (count / n)-th from a random start: each is as likely to be chosen.
    """
    n_patches, n_rois = present.shape[1:]
    tokens = np.arange(n_rois * n_patches).reshape(n_rois, n_patches).T
    chosen = np.empty((len(present), n), dtype=np.int64)
    # sample by sample: one array over all of them is out of the cache, and takes twice as long
    for row, sample, word in zip(chosen, present, words.tolist(), strict=True):
        there = tokens[sample]
        row[:] = there[(np.arange(n) * len(there) + word % len(there)) // n]
    return chosen
