"""Pictures of a run: its masks over the grid, and its curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from src.utils.errors import UserError

BLOCK_COLORS = {  # in the order in which blocks are painted over each other
    "unused": "#e9ebee",
    "context": "#4477aa",
    "alpha": "#ee9933",
    "beta": "#44aa77",
    "gamma": "#aa5599",
}
BLOCK_NAMES = {
    "unused": "in no block",
    "context": "context (observed)",
    "alpha": r"$\alpha$  Cross-ROI",
    "beta": r"$\beta$  Cross-Time",
    "gamma": r"$\gamma$  Double-Cross",
}
CURVES = {  # columns of the log, and what they are
    "loss": "loss (smooth L1)",
    "r2": "held-out R² over the position mean",
    "r2_clip_constant": "held-out R² over one constant per clip",
    "r2_swapped": "held-out R² with another clip's context",
    "variance": "target variance between samples",
    "variance_share": "share of their total variance",
    "rankme": "RankMe of the targets",
}
LOGARITHMIC = {"loss", "variance"}


class Blocks(Protocol):
    """Token indices [B, K] of the blocks of a batch, as `src.masks.sampler.MaskBatch` has them."""

    context: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray
    gamma: np.ndarray
    observed: np.ndarray | None


# ----------------------------------------------------------------------------------------- masks


def block_grid(masks: Blocks, sample: int, grid: tuple[int, int]) -> np.ndarray:
    """Which block each patch of a sample is in: int [R, P], positions in BLOCK_COLORS."""
    context = masks.context if masks.observed is None else masks.observed
    codes = np.zeros(grid[0] * grid[1], dtype=int)
    blocks = (context, masks.alpha, masks.beta, masks.gamma)
    for code, tokens in enumerate(blocks, start=1):
        codes[tokens[sample]] = code
    return codes.reshape(grid)


def rows_by_block(codes: np.ndarray) -> np.ndarray:
    """An order of the ROIs in which the rows of every block of `block_grid` lie together: [R]."""
    context, alpha, beta, gamma = ((codes == code).any(axis=1) for code in range(1, 5))
    place = np.select([beta, alpha & gamma, alpha, gamma, context], [1, 3, 4, 2, 0], default=5)
    return np.argsort(place, kind="stable")


def draw_masks(batches: Sequence[Blocks], grid: tuple[int, int], path: str | Path) -> None:
    """Draw the masks of every sample: ROIs in the atlas's order, and again with rows rearranged.

    Args:
        batches: what the collator's `sample` returns, of one step or, to show how sizes vary, of
            several.
        grid: (R, P) ROIs and patches per ROI.
        path: image to write.
    """
    samples = [block_grid(masks, i, grid) for masks in batches for i in range(len(masks.context))]
    figure = Figure(figsize=(2.4 + 2.4 * len(samples), 5), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2 * len(samples), sharey=True, squeeze=False)[0]
    for i, codes in enumerate(samples):
        paint_blocks(panels[2 * i], codes)
        paint_blocks(panels[2 * i + 1], codes[rows_by_block(codes)])
        panels[2 * i].set_title("atlas order", fontsize=8)
        panels[2 * i + 1].set_title("rearranged", fontsize=8)
    panels[0].set_ylabel("ROI")
    figure.supxlabel("patch (time)", fontsize=9)
    handles = [
        Patch(facecolor=BLOCK_COLORS[block], label=name) for block, name in BLOCK_NAMES.items()
    ]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path)


def paint_blocks(axes: Axes, codes: np.ndarray) -> None:
    """Fill axes with a grid of `block_grid` codes, time to the right."""
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


# ---------------------------------------------------------------------------------------- curves


def draw_curves(csv: str | Path, path: str | Path) -> None:
    """Draw the loss of a run, and its learning monitors where the log has any.

    Args:
        csv: log with one row per logged loss: `loss`, `step` and the columns of CURVES. A log of
            the release, without `step`, is drawn over its rows.
        path: image to write.

    Raises:
        UserError: if the log cannot be read or holds no loss.
    """
    try:
        log = pd.read_csv(csv)
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{csv} cannot be read as the log of a run: {error}") from error
    if "loss" not in log or not pd.api.types.is_numeric_dtype(log["loss"].dropna()):
        raise UserError(f"{csv} has no column of numbers named 'loss'; is it the log of a run?")
    if not log["loss"].notna().any():
        raise UserError(f"{csv} holds no loss yet: no step has been logged.")

    log.index = log["step"] if "step" in log else pd.RangeIndex(1, len(log) + 1)
    shown = [name for name in CURVES if name in log and log[name].notna().any()]
    n_columns = min(len(shown), 3)
    n_rows = -(-len(shown) // n_columns)
    figure = Figure(figsize=(4.2 * n_columns, 2.9 * n_rows), dpi=120, layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes, name in zip(panels, shown, strict=False):
        _draw_curve(axes, name, log[name].dropna())
    for axes in panels[len(shown) :]:
        axes.remove()
    figure.supxlabel("optimizer step" if "step" in log else "row of the log", fontsize=9)
    figure.savefig(path)


def _draw_curve(axes: Axes, name: str, curve: pd.Series) -> None:
    color = BLOCK_COLORS["context"]
    if name == "loss":
        window = max(1, len(curve) // 50)
        axes.plot(curve.index, curve, color=color, alpha=0.3, linewidth=0.8)
        curve = curve.rolling(window, center=True, min_periods=1).mean()
        axes.plot(curve.index, curve, color=color, linewidth=1.8)
    else:
        axes.plot(curve.index, curve, color=color, linewidth=1.8, marker="o", markersize=3)
    if name in LOGARITHMIC and (curve > 0).all():
        axes.set_yscale("log")
    if name == "r2":
        axes.axhline(0, color=BLOCK_COLORS["alpha"], linewidth=1)
        axes.annotate(
            "0: knows positions only",
            (1, 0),
            xycoords=("axes fraction", "data"),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            fontsize=7,
            color=BLOCK_COLORS["alpha"],
        )
    axes.set_title(CURVES[name], fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(alpha=0.25)
