"""Mode ``spatiotemporal``: an observation block and three kinds of target blocks (method 6).

Freedoms taken where method 6 leaves them:

* A fraction times a number of rows or columns is rounded down, as in I-JEPA, but never to zero
  unless the configured maximum is zero or it is the number of beta/gamma columns.
* Beta and gamma share their columns, as many in the left as in the right margin. A margin is 30 %
  of the columns, rounded down; with 3 or more columns at least one, with fewer none (then there
  are only alpha targets).
* Alpha's window is at most as wide as the longest run of neighbouring columns in C_T.
* Overlaps are sizes too: how many of alpha's rows are observed ones (hypergeometric), how many
  columns the margins leave of the window, and how much of alpha's window fits there. The last two
  are read off the first of many random layouts of the columns; each sample takes one of those
  that agree with it. As the layouts are exchangeable, the one taken is distributed as if it had
  been drawn alone: no row or column has to be given up, and the batch size plays no part.
* ``min_keep`` is met by taking rows back from alpha.
"""

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import numpy as np

from ..utils.errors import UserError
from .batch import MaskBatch, block, random_order, random_words, whole_counts
from .scales import Scale, check_min_keep, check_scale, part, size

MARGIN = 0.3  # share of the columns on each side in which beta and gamma lie (method 6)
N_LAYOUTS = 256  # random layouts of the columns per step, as a rule dozens of each kind


@dataclass(frozen=True)
class SpatiotemporalMasks:
    """The blocks of method 6 on a grid of R ROIs x P patches.

    The defaults are the published values, and stand nowhere else.

    Args:
        n_rois, n_patches: R and P.
        enc_mask_scale: observation block: of all ROIs, and of the patches.
        pred_mask_R_scale: alpha's rows, of all ROIs.
        pred_mask_T_scale: beta's and gamma's columns in each margin, of the patches.
        pred_mask_T_roi_scale: alpha's window, of the patches.
        pred_mask_R_roi_scale: beta's rows, of C_R; gamma's, of its complement.
        min_keep: fewest context tokens.
        allow_overlap: as in I-JEPA, whether the context may hold targets. False takes the targets
            out of the observation block; True leaves it whole, with the targets placed as before.

    Raises:
        UserError: a fraction outside 0-1 or reversed, target blocks that take every ROI, or a
            ``min_keep`` that some draw could not meet.
    """

    n_rois: int
    n_patches: int
    enc_mask_scale: Scale = (0.84, 1.0)
    pred_mask_R_scale: Scale = (0.45, 0.6)
    pred_mask_T_scale: Scale = (0.0, 0.4)
    pred_mask_T_roi_scale: Scale = (0.2, 0.6)
    pred_mask_R_roi_scale: Scale = (0.15, 0.3)
    min_keep: int = 4
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        for name in ("enc_mask_scale", "pred_mask_R_scale", "pred_mask_T_roi_scale"):
            check_scale(name, getattr(self, name))
        for name in ("pred_mask_T_scale", "pred_mask_R_roi_scale"):
            check_scale(name, getattr(self, name), zero_allowed=True)
        if self.n_rois < 2 or self.n_patches < 1:
            raise UserError(
                f"masks need at least 2 ROIs x 1 patch, but data.crop_size and mask.patch_size "
                f"give {self.n_rois} x {self.n_patches}; choose a larger crop."
            )
        if size(self.pred_mask_R_scale, self.n_rois, 1.0) >= self.n_rois:
            raise UserError(
                f"mask.pred_mask_R_scale is {list(self.pred_mask_R_scale)}: its maximum takes all "
                f"{self.n_rois} ROIs out of the context; the maximum must be below 1."
            )
        remedy = ", raise mask.enc_mask_scale or lower mask.pred_mask_T_scale"
        check_min_keep(self.min_keep, *self._smallest_context(), remedy)

    def _smallest_context(self) -> tuple[int, int]:
        """Rows that alpha can be made to leave, and columns, in the least favourable draw."""
        window = size(self.enc_mask_scale, self.n_patches, 0.0)
        taken_out = _margin_columns(self.pred_mask_T_scale, self.n_patches, 1.0)
        margin = _margin(self.n_patches)
        start = np.arange(self.n_patches - window + 1)
        in_left = np.clip(margin - start, 0, window)
        in_right = np.clip(start + window - (self.n_patches - margin), 0, window)
        columns = window - np.minimum(in_left, taken_out) - np.minimum(in_right, taken_out)
        rows = min(size(self.enc_mask_scale, self.n_rois, 0.0), self.n_rois - 1)
        return rows, int(columns.min())

    @property
    def words_per_sample(self) -> int:
        """Three orders of the ROIs, a layout and a place for alpha's window."""
        return whole_counts(3 * self.n_rois + 2)

    def sizes(self, generator: np.random.Generator) -> "BlockSizes":
        """Draw the sizes of all blocks and of their overlaps, once for a batch."""
        n_rois, n_patches = self.n_rois, self.n_patches
        u = generator.random(7).tolist()

        # columns
        window = size(self.enc_mask_scale, n_patches, u[1])
        margin_columns = _margin_columns(self.pred_mask_T_scale, n_patches, u[2])
        layouts = _draw_layouts(n_patches, window, margin_columns, generator)
        context_columns = layouts.context.sum(axis=1)
        alpha_columns = np.minimum(
            layouts.longest_run(), size(self.pred_mask_T_roi_scale, n_patches, u[3])
        )
        alike = (context_columns == context_columns[0]) & (alpha_columns == alpha_columns[0])

        # rows
        observed_rows = size(self.enc_mask_scale, n_rois, u[0])
        alpha_rows = size(self.pred_mask_R_scale, n_rois, u[4])
        taken_out = int(generator.hypergeometric(alpha_rows, n_rois - alpha_rows, observed_rows))
        context_rows = max(observed_rows - taken_out, ceil(self.min_keep / int(context_columns[0])))
        outside_rows = n_rois - context_rows
        return BlockSizes(
            observed_rows=observed_rows,
            window=window,
            margin_columns=margin_columns,
            context_rows=context_rows,
            context_columns=int(context_columns[0]),
            alpha_rows=min(alpha_rows, outside_rows),
            alpha_columns=int(alpha_columns[0]),
            beta_rows=size(self.pred_mask_R_roi_scale, context_rows, u[5]),
            gamma_rows=size(self.pred_mask_R_roi_scale, outside_rows, u[6]),
            layouts=layouts.take(alike),
        )

    def place(
        self, sizes: "BlockSizes", batch_size: int, generator: np.random.Generator
    ) -> MaskBatch:
        """Place blocks of these sizes in each sample.

        The rows of context and alpha come in the same random order in each column; beta and gamma
        have the left margin's columns first, then the right's.
        """
        s, n_rois = sizes, self.n_rois
        words = random_words(self, batch_size, generator)
        uniform = (words[:, -2:] >> np.uint64(11)) * 2.0**-53

        # rows: one random order of the ROIs per sample, cut into C_R, alpha's rows and the rest
        order = random_order(words[:, :n_rois]) * self.n_patches  # [B, R], first token of each ROI
        inside, outside = order[:, : s.context_rows], order[:, s.context_rows :]
        anew = words[:, n_rois : 3 * n_rois].reshape(batch_size, 2, n_rois)  # for each margin
        beta_rows = _random_rows(inside, s.beta_rows, anew[:, :, : s.context_rows])
        gamma_rows = _random_rows(outside, s.gamma_rows, anew[:, :, s.context_rows :])

        # columns
        layouts = s.layouts.take((uniform[:, 0] * len(s.layouts.start)).astype(np.int64))
        context_columns = layouts.context.nonzero()[1].reshape(batch_size, s.context_columns)
        alpha_columns = _place_alpha(layouts.context, s.alpha_columns, uniform[:, 1])
        window = layouts.start[:, None] + np.arange(s.window)
        return MaskBatch(
            context=block(inside, context_columns),
            blocks={
                "alpha": block(outside[:, : s.alpha_rows], alpha_columns),
                "beta": block(beta_rows, layouts.margins),
                "gamma": block(gamma_rows, layouts.margins),
            },
            observed=block(order[:, : s.observed_rows], window) if self.allow_overlap else None,
        )


class Layouts(NamedTuple):
    """Ways to place the columns of the observation and of beta and gamma, L of them."""

    start: np.ndarray  # int [L], first column of the observation's window
    margins: np.ndarray  # int [L, 2, M], beta's and gamma's columns on the left and on the right
    context: np.ndarray  # bool [L, P], C_T: what the margins leave of the window

    def longest_run(self) -> np.ndarray:
        """Count the neighbouring columns in the longest run of C_T: ``[L]``."""
        end = np.arange(1, self.context.shape[1] + 1)
        last_gap = np.maximum.accumulate(np.where(self.context, 0, end), axis=1)
        return (end - last_gap).max(axis=1)

    def take(self, which: np.ndarray) -> "Layouts":
        """Select layouts by a mask or by indices."""
        return Layouts(self.start[which], self.margins[which], self.context[which])


class BlockSizes(NamedTuple):
    """What the samples of a batch share. Rows are ROIs, columns are patches in time."""

    observed_rows: int  # observation block before anything is taken out of it
    window: int  # its columns
    margin_columns: int  # beta/gamma columns in each margin
    context_rows: int  # |C_R|
    context_columns: int  # |C_T|
    alpha_rows: int
    alpha_columns: int  # what of the drawn width fits into C_T
    beta_rows: int  # in each margin
    gamma_rows: int  # in each margin
    layouts: Layouts  # of these sizes; each sample takes one


def _draw_layouts(
    n_patches: int, window: int, margin_columns: int, generator: np.random.Generator
) -> Layouts:
    """Draw ``N_LAYOUTS`` independent layouts: a window anywhere, a subset of each margin."""
    margin = _margin(n_patches)
    start = generator.integers(n_patches - window + 1, size=N_LAYOUTS)
    order = generator.random((N_LAYOUTS, 2, margin)).argsort(axis=2)
    margins = order[:, :, :margin_columns] + [[0], [n_patches - margin]]
    columns = np.arange(n_patches)
    context = (columns >= start[:, None]) & (columns < start[:, None] + window)
    context[np.arange(N_LAYOUTS)[:, None, None], margins] = False
    return Layouts(start, margins, context)


def _margin_columns(scale: Scale, n_patches: int, u: float) -> int:
    """Beta/gamma columns in each margin; unlike the other sizes this may be 0."""
    return min(_margin(n_patches), part(scale, n_patches, u))


def _margin(n_patches: int) -> int:
    """Columns of the left, and of the right, margin."""
    return max(1, part((MARGIN, MARGIN), n_patches, 0.0)) if n_patches > 2 else 0


def _random_rows(rows: np.ndarray, n: int, words: np.ndarray) -> np.ndarray:
    """Choose n of the rows ``[B, M]`` for each margin, from words ``[B, 2, M]``: ``[B, 2, n]``."""
    return np.take_along_axis(rows[:, None], random_order(words)[:, :, :n], axis=2)


def _place_alpha(context: np.ndarray, width: int, uniform: np.ndarray) -> np.ndarray:
    """Neighbouring columns inside C_T ``[B, P]``, each place equally likely: ``[B, width]``."""
    n_places = context.shape[1] - width + 1
    fits = context[:, :n_places].copy()
    for column in range(1, width):
        fits &= context[:, column : column + n_places]
    rank = fits.cumsum(axis=1)  # 1 at the first place, 2 at the second, ...
    start = (rank > (uniform * rank[:, -1]).astype(np.int64)[:, None]).argmax(axis=1)
    return start[:, None] + np.arange(width)


MaskSettings = SpatiotemporalMasks  # its name while there was one mode
