"""Draw the blocks of spatiotemporal masking (method 6): pure functions of settings and a generator.

``sample_sizes`` draws what all samples of a batch share, ``sample_masks`` places it in each sample.

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

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import numpy as np

from ..utils.errors import UserError

MARGIN = 0.3  # share of the columns on each side in which beta and gamma lie (method 6)
N_LAYOUTS = 256  # random layouts of the columns per step, as a rule dozens of each kind
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
        taken_out = _margin_columns(self.pred_mask_T_scale, self.n_patches, 1.0)
        margin = _margin(self.n_patches)
        start = np.arange(self.n_patches - window + 1)
        in_left = np.clip(margin - start, 0, window)
        in_right = np.clip(start + window - (self.n_patches - margin), 0, window)
        columns = window - np.minimum(in_left, taken_out) - np.minimum(in_right, taken_out)
        rows = min(_size(self.enc_mask_scale, self.n_rois, 0.0), self.n_rois - 1)
        return rows, int(columns.min())


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
    return min(_margin(n_patches), _part(scale, n_patches, u))


def _margin(n_patches: int) -> int:
    """Columns of the left, and of the right, margin."""
    return max(1, _part((MARGIN, MARGIN), n_patches, 0.0)) if n_patches > 2 else 0


# --------------------------------------------------------------------------------------- columns


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
    alpha_columns: int  # what of the drawn width fits into C_T
    beta_rows: int  # in each margin
    gamma_rows: int  # in each margin
    layouts: Layouts  # of these sizes; each sample takes one


def sample_sizes(settings: MaskSettings, generator: np.random.Generator) -> BlockSizes:
    """Draw the sizes of all blocks and of their overlaps, once for a batch (method 6)."""
    s, n_rois, n_patches = settings, settings.n_rois, settings.n_patches
    u = generator.random(7).tolist()

    # columns
    window = _size(s.enc_mask_scale, n_patches, u[1])
    margin_columns = _margin_columns(s.pred_mask_T_scale, n_patches, u[2])
    layouts = _draw_layouts(n_patches, window, margin_columns, generator)
    context_columns = layouts.context.sum(axis=1)
    alpha_columns = np.minimum(
        layouts.longest_run(), _size(s.pred_mask_T_roi_scale, n_patches, u[3])
    )
    alike = (context_columns == context_columns[0]) & (alpha_columns == alpha_columns[0])

    # rows
    observed_rows = _size(s.enc_mask_scale, n_rois, u[0])
    alpha_rows = _size(s.pred_mask_R_scale, n_rois, u[4])
    taken_out = int(generator.hypergeometric(alpha_rows, n_rois - alpha_rows, observed_rows))
    context_rows = max(observed_rows - taken_out, ceil(s.min_keep / int(context_columns[0])))
    outside_rows = n_rois - context_rows
    return BlockSizes(
        n_rois=n_rois,
        n_patches=n_patches,
        observed_rows=observed_rows,
        window=window,
        margin_columns=margin_columns,
        context_rows=context_rows,
        context_columns=int(context_columns[0]),
        alpha_rows=min(alpha_rows, outside_rows),
        alpha_columns=int(alpha_columns[0]),
        beta_rows=_size(s.pred_mask_R_roi_scale, context_rows, u[5]),
        gamma_rows=_size(s.pred_mask_R_roi_scale, outside_rows, u[6]),
        layouts=layouts.take(alike),
    )


# ------------------------------------------------------------------------------------- positions


class MaskBatch(NamedTuple):
    """Token indices ``n = roi * P + patch``, int64 ``[B, K]``.

    A block is listed column after column. The rows of context and alpha come in the same random
    order in each column; beta and gamma have the left margin's columns first, then the right's.
    ``observed`` is the observation block, ``context`` = C_R x C_T what the targets leave of it.
    """

    context: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray
    gamma: np.ndarray
    observed: np.ndarray | None = None  # only on request

    @property
    def targets(self) -> np.ndarray:
        """Alpha, then beta, then gamma: ``[B, K]``."""
        return np.concatenate((self.alpha, self.beta, self.gamma), axis=1)


def words_per_sample(n_rois: int) -> int:
    """Count the 64-bit random words one sample uses, in whole steps of the Philox counter."""
    return PHILOX_WORDS * ceil((3 * n_rois + 2) / PHILOX_WORDS)


def sample_masks(
    sizes: BlockSizes, batch_size: int, generator: np.random.Generator, with_observed: bool = False
) -> MaskBatch:
    """Place blocks of the given sizes in each sample (method 6).

    A sample uses exactly ``words_per_sample`` words of the generator: two half batches drawn one
    after the other are the whole batch.
    """
    s, n_rois = sizes, sizes.n_rois
    words = generator.integers(
        0, 2**64 - 1, size=(batch_size, words_per_sample(n_rois)), dtype=np.uint64, endpoint=True
    )
    uniform = (words[:, -2:] >> np.uint64(11)) * 2.0**-53

    # rows: one random order of the ROIs per sample, cut into C_R, alpha's rows and the rest
    order = _random_order(words[:, :n_rois]) * s.n_patches  # [B, R], first token of each ROI
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
        context=_block(inside, context_columns),
        alpha=_block(outside[:, : s.alpha_rows], alpha_columns),
        beta=_block(beta_rows, layouts.margins),
        gamma=_block(gamma_rows, layouts.margins),
        observed=_block(order[:, : s.observed_rows], window) if with_observed else None,
    )


def _block(first_tokens: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Tokens of rows ``[B, ..., M]`` x columns ``[B, ..., C]``: ``[B, K]``."""
    # columns outside, rows inside: a long inner loop takes a third of the time of a short one
    grid = columns[..., :, None] + first_tokens[..., None, :]
    return grid.reshape(len(grid), -1)


def _random_order(words: np.ndarray) -> np.ndarray:
    """Return a uniformly random order of range(n) for random words uint64 ``[..., n]``.

    Each word gives its low bits to its own index, so that sorting the words orders the indices:
    half the time of an argsort. The 50 or so bits left are enough for ties never to matter.
    """
    n = words.shape[-1]
    index_bits = np.uint64(2 ** n.bit_length() - 1)
    keys = (words & ~index_bits) | np.arange(n, dtype=np.uint64)
    keys.sort(axis=-1)
    return (keys & index_bits).view(np.int64)


def _random_rows(rows: np.ndarray, n: int, words: np.ndarray) -> np.ndarray:
    """Choose n of the rows ``[B, M]`` for each margin, from words ``[B, 2, M]``: ``[B, 2, n]``."""
    return np.take_along_axis(rows[:, None], _random_order(words)[:, :, :n], axis=2)


def _place_alpha(context: np.ndarray, width: int, uniform: np.ndarray) -> np.ndarray:
    """Neighbouring columns inside C_T ``[B, P]``, each place equally likely: ``[B, width]``."""
    n_places = context.shape[1] - width + 1
    fits = context[:, :n_places].copy()
    for column in range(1, width):
        fits &= context[:, column : column + n_places]
    rank = fits.cumsum(axis=1)  # 1 at the first place, 2 at the second, ...
    start = (rank > (uniform * rank[:, -1]).astype(np.int64)[:, None]).argmax(axis=1)
    return start[:, None] + np.arange(width)
