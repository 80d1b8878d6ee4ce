"""Draw the blocks of spatiotemporal masking (spec 6): pure functions of settings and a generator.

`sample_sizes` draws what all samples of a batch share, `sample_masks` places it in each sample.

Freedoms taken where spec 6 leaves them:

* A fraction times a number of rows or columns is rounded down, as in I-JEPA, but never to zero
  unless the configured maximum is zero or it is the number of beta/gamma columns.
* Beta and gamma share their columns: a contiguous block of the same width in the left and in the
  right margin. A margin is 30 % of the columns, rounded down; with 3 or more columns at least one,
  with fewer none (then there are only alpha targets).
* Alpha's window is at most as wide as the longest run of neighbouring columns in C_T.
* Overlaps are sizes too: how many of alpha's rows are observed ones (hypergeometric), how many
  columns the margin blocks leave of the window, and how much of alpha's window fits there (both
  read off one random layout). Drawn once per batch like every size, they make the samples draws
  *given* the overlap. So no row or column has to be given up, each sample is distributed as if it
  had been drawn alone, and the batch size plays no part.
* `min_keep` is met by taking rows back from alpha.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import NamedTuple

import numpy as np

from src.utils.errors import UserError

MARGIN = 0.3  # share of the columns on each side in which beta and gamma lie (spec 6)
PHILOX_WORDS = 4  # 64-bit words per value of the counter of numpy's Philox generator

Scale = Sequence[float]


# -------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class MaskSettings:
    """A grid of R ROIs x P patches and the (min, max) fractions of its blocks; checked on creation.

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
            `min_keep` that some draw could not meet.
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
            _check_scale(name, getattr(self, name), zero_allowed=False)
        for name in ("pred_mask_T_scale", "pred_mask_R_roi_scale"):
            _check_scale(name, getattr(self, name), zero_allowed=True)
        if self.n_rois < 2 or self.n_patches < 1:
            raise UserError(
                f"masks need at least 2 ROIs x 1 patch, but data.crop_size and mask.patch_size "
                f"give {self.n_rois} x {self.n_patches}; choose a larger crop."
            )
        if _size(self.pred_mask_R_scale, self.n_rois, 1.0) >= self.n_rois:
            raise UserError(
                f"mask.pred_mask_R_scale is {list(self.pred_mask_R_scale)}: its maximum takes all "
                f"{self.n_rois} ROIs out of the context; the maximum must be below 1."
            )
        rows, columns = self._smallest_context()
        if not 1 <= self.min_keep <= rows * columns:
            raise UserError(
                f"mask.min_keep is {self.min_keep}: on a grid of {self.n_rois} ROIs x "
                f"{self.n_patches} patches the smallest observation block can keep "
                f"{rows} x {columns} patches, so it must lie between 1 and {rows * columns}; "
                "lower min_keep, raise mask.enc_mask_scale or lower mask.pred_mask_T_scale."
            )

    def _smallest_context(self) -> tuple[int, int]:
        """Rows that alpha can be made to leave, and columns, in the least favourable draw."""
        window = _size(self.enc_mask_scale, self.n_patches, 0.0)
        margin = _margin_columns(self.pred_mask_T_scale, self.n_patches, 1.0)
        columns = _layouts(self.n_patches, window, margin).columns.min()
        rows = min(_size(self.enc_mask_scale, self.n_rois, 0.0), self.n_rois - 1)
        return rows, int(columns)


def _check_scale(name: str, scale: Scale, zero_allowed: bool) -> None:
    is_pair = len(scale) == 2 and all(isinstance(x, int | float) for x in scale)
    if not (is_pair and 0 <= scale[0] <= scale[1] <= 1 and (zero_allowed or scale[1] > 0)):
        maximum = "" if zero_allowed else " and max above 0"
        raise UserError(
            f"mask.{name} is {list(scale)}: expected two fractions [min, max] with "
            f"0 <= min <= max <= 1{maximum}."
        )


def _part(scale: Scale, n: int, u: float) -> int:
    """Whole part of a fraction of n, for u from 0 (the minimum) to 1 (the maximum)."""
    return int((scale[0] + u * (scale[1] - scale[0])) * n + 1e-6)  # .29 * 100 is 28.999...


def _size(scale: Scale, n: int, u: float) -> int:
    """Rows or columns of a block: at least 1 if there may be any."""
    return max(_part(scale, n, u), 1 if scale[1] else 0)


def _margin_columns(scale: Scale, n_patches: int, u: float) -> int:
    """Beta/gamma columns in each margin; unlike the other sizes this may be 0."""
    margin = max(1, _part((MARGIN, MARGIN), n_patches, 0.0)) if n_patches > 2 else 0
    return min(margin, _part(scale, n_patches, u))


# ----------------------------------------------------------------------------------------- sizes


class BlockSizes(NamedTuple):
    """What the samples of a batch share. Rows are ROIs, columns are patches in time."""

    n_rois: int
    n_patches: int
    observed_rows: int  # observation block before anything is taken out of it
    window: int  # its columns
    margin_columns: int  # beta/gamma columns in each margin
    context_rows: int  # |C_R|
    context_columns: int  # |C_T|
    alpha_rows: int
    alpha_drawn: int  # width drawn for alpha's window
    alpha_columns: int  # what of it fits into C_T
    beta_rows: int
    gamma_rows: int
    shared_rows: int  # rows that alpha and gamma have in common


class _Layouts(NamedTuple):
    """Every way to place window and margin blocks in time, indexed [start, left, right].

    `start` is the first column of the window; `left` and `right` count the columns between the
    outer edge and the margin block. The mirror image of a layout is a layout, with the same values.
    """

    columns: np.ndarray  # |C_T|, what the margin blocks leave of the window
    longest_run: np.ndarray  # of neighbouring columns in it


@lru_cache(maxsize=256)
def _layouts(n_patches: int, window: int, margin_columns: int) -> _Layouts:
    margin = _margin_columns((1.0, 1.0), n_patches, 1.0)
    n_places = margin - margin_columns + 1 if margin_columns else 1
    start, left, right = np.ogrid[: n_patches - window + 1, :n_places, :n_places]
    right_block = n_patches - right - margin_columns

    def observed(first: np.ndarray | int, end: np.ndarray | int) -> np.ndarray:
        return np.maximum(np.minimum(start + window, end) - np.maximum(start, first), 0)

    runs = np.broadcast_arrays(
        observed(0, left),
        observed(left + margin_columns, right_block),
        observed(right_block + margin_columns, n_patches),
    )
    return _Layouts(columns=np.sum(runs, axis=0), longest_run=np.max(runs, axis=0))


def sample_sizes(settings: MaskSettings, generator: np.random.Generator) -> BlockSizes:
    """Draw the sizes of all blocks and of their overlaps, once for a batch (spec 6)."""
    s, n_rois, n_patches = settings, settings.n_rois, settings.n_patches
    u = generator.random(7).tolist()

    observed_rows = _size(s.enc_mask_scale, n_rois, u[0])
    window = _size(s.enc_mask_scale, n_patches, u[1])
    margin_columns = _margin_columns(s.pred_mask_T_scale, n_patches, u[2])
    alpha_drawn = _size(s.pred_mask_T_roi_scale, n_patches, u[3])
    layouts = _layouts(n_patches, window, margin_columns)
    layout = int(generator.integers(layouts.columns.size))
    context_columns = int(layouts.columns.flat[layout])

    alpha_rows = _size(s.pred_mask_R_scale, n_rois, u[4])
    taken_out = int(generator.hypergeometric(alpha_rows, n_rois - alpha_rows, observed_rows))
    context_rows = max(observed_rows - taken_out, ceil(s.min_keep / context_columns))
    outside_rows = n_rois - context_rows
    alpha_rows = min(alpha_rows, outside_rows)
    gamma_rows = _size(s.pred_mask_R_roi_scale, outside_rows, u[6])
    shared_rows = int(generator.hypergeometric(alpha_rows, outside_rows - alpha_rows, gamma_rows))
    return BlockSizes(
        n_rois=n_rois,
        n_patches=n_patches,
        observed_rows=observed_rows,
        window=window,
        margin_columns=margin_columns,
        context_rows=context_rows,
        context_columns=context_columns,
        alpha_rows=alpha_rows,
        alpha_drawn=alpha_drawn,
        alpha_columns=min(alpha_drawn, int(layouts.longest_run.flat[layout])),
        beta_rows=_size(s.pred_mask_R_roi_scale, context_rows, u[5]),
        gamma_rows=gamma_rows,
        shared_rows=shared_rows,
    )


# ------------------------------------------------------------------------------------- positions


class MaskBatch(NamedTuple):
    """Token indices `n = roi * P + patch`, int64 [B, K].

    A block is listed column after column, each with the block's ROIs in the same random order.
    `observed` is the observation block, `context` = C_R x C_T what the targets leave of it.
    """

    context: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray
    gamma: np.ndarray
    observed: np.ndarray | None = None  # only on request

    @property
    def targets(self) -> np.ndarray:
        """Alpha, then beta, then gamma: [B, K]."""
        return np.concatenate((self.alpha, self.beta, self.gamma), axis=1)


def words_per_sample(n_rois: int) -> int:
    """64-bit random words one sample uses, in whole steps of the Philox counter."""
    return PHILOX_WORDS * ceil((n_rois + 2) / PHILOX_WORDS)


def sample_masks(
    sizes: BlockSizes, batch_size: int, generator: np.random.Generator, with_observed: bool = False
) -> MaskBatch:
    """Place blocks of the given sizes in each sample, independently (spec 6).

    A sample uses exactly `words_per_sample` words of the generator: two half batches drawn one
    after the other are the whole batch.
    """
    s, n_rois = sizes, sizes.n_rois
    words = generator.integers(
        0, 2**64 - 1, size=(batch_size, words_per_sample(n_rois)), dtype=np.uint64, endpoint=True
    )
    uniform = (words[:, n_rois : n_rois + 2] >> np.uint64(11)) * 2.0**-53

    # rows: one random order of the ROIs per sample, cut into C_R, alpha's rows and the rest.
    # Gamma's rows straddle the end of alpha's by as many as a random choice would share with them.
    order = _random_order(words[:, :n_rois])
    first_tokens = order * s.n_patches  # [B, R]
    gamma_first = s.context_rows + s.alpha_rows - s.shared_rows

    # columns
    window, margins, c_t = _place_columns(s, uniform[:, 0])
    alpha_columns = _place_alpha(c_t, s.alpha_columns, uniform[:, 1])
    context_columns = c_t.nonzero()[1].reshape(batch_size, s.context_columns)

    def block(first_row: int, n_rows: int, columns: np.ndarray) -> np.ndarray:
        rows = first_tokens[:, first_row : first_row + n_rows]
        # columns outside, rows inside: a long inner loop takes a third of the time of a short one
        grid = columns[:, :, None] + rows[:, None, :]
        return grid.reshape(batch_size, n_rows * columns.shape[1])

    return MaskBatch(
        context=block(0, s.context_rows, context_columns),
        alpha=block(s.context_rows, s.alpha_rows, alpha_columns),
        beta=block(0, s.beta_rows, margins),
        gamma=block(gamma_first, s.gamma_rows, margins),
        observed=block(0, s.observed_rows, window) if with_observed else None,
    )


def _random_order(words: np.ndarray) -> np.ndarray:
    """A uniformly random order of range(n) per row of random words uint64 [B, n].

    Each word gives its low bits to its own index, so that sorting the words orders the indices:
    half the time of an argsort. The 50 or so bits left are enough for ties never to matter.
    """
    n = words.shape[1]
    index_bits = np.uint64(2 ** n.bit_length() - 1)
    keys = (words & ~index_bits) | np.arange(n, dtype=np.uint64)
    keys.sort(axis=1)
    return (keys & index_bits).view(np.int64)


def _place_columns(
    sizes: BlockSizes, uniform: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the window [B, W], the margin columns [B, 2 M] and C_T as booleans [B, P].

    Each sample gets one of the layouts that leave room for C_T and alpha as `sizes` has them.
    """
    s = sizes
    layouts = _layouts(s.n_patches, s.window, s.margin_columns)
    alpha_columns = np.minimum(layouts.longest_run, s.alpha_drawn)
    alike = (layouts.columns == s.context_columns) & (alpha_columns == s.alpha_columns)
    candidates = np.flatnonzero(alike)
    chosen = candidates[(uniform * candidates.size).astype(np.int64)]
    start, left, right = np.unravel_index(chosen, alike.shape)

    window = start[:, None] + np.arange(s.window)
    block = np.arange(s.margin_columns)
    right_block = s.n_patches - right - s.margin_columns
    margins = np.concatenate((left[:, None] + block, right_block[:, None] + block), axis=1)
    c_t = np.zeros((uniform.size, s.n_patches), dtype=bool)
    samples = np.arange(uniform.size)[:, None]
    c_t[samples, window] = True
    c_t[samples, margins] = False
    return window, margins, c_t


def _place_alpha(c_t: np.ndarray, width: int, uniform: np.ndarray) -> np.ndarray:
    """Neighbouring columns inside C_T [B, P], each place equally likely: [B, width]."""
    n_places = c_t.shape[1] - width + 1
    fits = c_t[:, :n_places].copy()
    for column in range(1, width):
        fits &= c_t[:, column : column + n_places]
    rank = fits.cumsum(axis=1)  # 1 at the first place, 2 at the second, ...
    start = (rank > (uniform * rank[:, -1]).astype(np.int64)[:, None]).argmax(axis=1)
    return start[:, None] + np.arange(width)
