"""Pictures of masks: which block every patch of the grid is in."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..utils.curves import save_figure
from .batch import MaskBatch

BLOCK_COLORS = {  # in the order in which blocks are painted over each other
    "unused": "#e9ebee",
    "context": "#4477aa",
    "alpha": "#ee9933",
    "beta": "#44aa77",
    "gamma": "#aa5599",
    "target": "#cc6677",
}
BLOCK_NAMES = {
    "unused": "in no block",
    "context": "context (observed)",
    "alpha": r"$\alpha$  Cross-ROI",
    "beta": r"$\beta$  Cross-Time",
    "gamma": r"$\gamma$  Double-Cross",
    "target": "target blocks",
}
UNUSED, CONTEXT, ALPHA, BETA, GAMMA, TARGET = range(len(BLOCK_COLORS))


def block_grid(masks: MaskBatch, sample: int, grid: tuple[int, int]) -> np.ndarray:
    """Which block each patch of a sample is in: int ``[R, P]``, positions in ``BLOCK_COLORS``."""
    names = list(BLOCK_COLORS)
    codes = np.full(grid[0] * grid[1], UNUSED)
    codes[masks.seen[sample]] = CONTEXT
    for name, tokens in masks.blocks.items():
        codes[tokens[sample]] = names.index(name)
    return codes.reshape(grid)


def rows_by_block(codes: np.ndarray) -> np.ndarray:
    """An order of the ROIs that brings together the rows of every block of ``block_grid``: ``[R]``.

    Context, alpha, beta in each margin and gamma in the right one are in one piece each. Gamma in
    the left margin can be in two: no order serves it, gamma on the right and alpha at once. Blocks
    of neighbouring ROIs (mode multiblock) lie together in the atlas's order, which they keep.
    """
    if (codes == TARGET).any():
        return np.arange(len(codes))
    middle = codes.shape[1] // 2
    left, right = (
        np.isin(side, (BETA, GAMMA)).any(axis=1) for side in (codes[:, :middle], codes[:, middle:])
    )
    alpha, observed = ((codes == block).any(axis=1) for block in (ALPHA, CONTEXT))
    group = np.select([alpha, observed], [1, 0], default=2)
    margins = np.select([left & right, left, right], [2, 1, 3], default=0)
    return np.lexsort((np.where(group == 2, 3 - margins, margins), group))


def draw_masks(batches: Sequence[MaskBatch], grid: tuple[int, int], path: str | Path) -> None:
    """Draw the masks of every sample: ROIs in the atlas's order above, rearranged by block below.

    Where the atlas's order keeps the blocks of all samples together, it stands alone.

    Args:
        batches: what the collator's ``sample`` returns, of one step or, to show how sizes vary, of
            several.
        grid: (R, P) ROIs and patches per ROI.
        path: image to write.
    """
    samples = [(masks, i) for masks in batches for i in range(len(masks.context))]
    shown = [block_grid(masks, i, grid) for masks, i in samples]
    rearranged = [codes[rows_by_block(codes)] for codes in shown]
    rows = {"ROI, in the atlas's order": shown, "ROIs rearranged by block": rearranged}
    if all(map(np.array_equal, shown, rearranged)):
        rows.popitem()
    figure = Figure(
        figsize=(1 + 1.7 * len(samples), 1.4 + 3.1 * len(rows)), dpi=150, layout="constrained"
    )
    panels = figure.subplots(len(rows), len(samples), sharex=True, sharey="row", squeeze=False)
    for line, (name, grids) in zip(panels, rows.items(), strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for axes, codes in zip(line, grids, strict=True):
            paint_blocks(axes, codes)
            if grids is rearranged:
                axes.set_yticks([])
    for axes, (masks, _), codes in zip(panels[0], samples, shown, strict=True):
        context = np.count_nonzero(codes == CONTEXT)
        title = f"{context} context\n{masks.targets.shape[1]} targets"
        axes.set_title(title, fontsize=8, linespacing=1.3)
    figure.supxlabel("patch (time)", fontsize=9)
    present = set(np.unique(shown).tolist())
    handles = [
        Patch(facecolor=BLOCK_COLORS[block], label=name)
        for code, (block, name) in enumerate(BLOCK_NAMES.items())
        if code in present
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9
    )
    save_figure(figure, path)


def paint_blocks(axes: Axes, codes: np.ndarray) -> None:
    """Fill axes with a grid of ``block_grid`` codes, time to the right."""
    axes.imshow(
        codes,
        cmap=ListedColormap(list(BLOCK_COLORS.values())),
        vmin=0,
        vmax=len(BLOCK_COLORS) - 1,
        aspect="auto",
        interpolation="nearest",
    )
    n_rois, n_patches = codes.shape
    axes.set_xticks([0, n_patches - 1])
    axes.set_yticks([0, n_rois - 1])
    axes.set_xticks(np.arange(1, n_patches) - 0.5, minor=True)
    axes.grid(which="minor", axis="x", color="white", linewidth=0.5)
    axes.tick_params(which="both", length=0, labelsize=7)
