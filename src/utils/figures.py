"""The curves of a run."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.utils.errors import UserError

LINE, REFERENCE = "#4477aa", "#ee9933"
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
    color = LINE
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
        axes.axhline(0, color=REFERENCE, linewidth=1)
        axes.annotate(
            "0: knows positions only",
            (1, 0),
            xycoords=("axes fraction", "data"),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            fontsize=7,
            color=REFERENCE,
        )
    axes.set_title(CURVES[name], fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(alpha=0.25)
