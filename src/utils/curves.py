"""The curves of a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter, SymmetricalLogLocator

from .errors import UserError
from .files import replacing

COLORS = ("#4477aa", "#44aa77", "#aa5599")
REFERENCE = "#ee9933"
LEAST_FACTOR = 4.0  # between the ends of a logarithmic axis
LINEAR_UP_TO = 0.1  # a symlog axis is linear between minus this and this


@dataclass(frozen=True)
class Panel:
    """Columns of the log that share one pair of axes.

    A curve that hardly moves has to look flat, so the axis starts at 0 or below and spans at least
    ``least``; a logarithmic one spans at least ``LEAST_FACTOR``.
    """

    title: str
    columns: Mapping[str, str]  # name in the log: label
    scale: Literal["linear", "log", "symlog"] = "linear"
    least: float = 1.0
    untrained: bool = False  # whether the values of random weights are drawn, dashed


PANELS = (
    Panel("training loss", {"loss": ""}, scale="log"),
    Panel(
        "held-out R² of the signal (dashed: untrained)",
        {"signal_r2": "of hidden ROIs", "forecast_r2": "of the last patch"},
        least=0.1,
        untrained=True,
    ),
    Panel(
        "held-out R² of latent targets",
        {
            "r2": "over the position mean",
            "r2_clip_constant": "over one constant per clip",
            "r2_swapped": "with another clip's context",
        },
        scale="symlog",  # an untrained predictor is far below 0, a trained one a little above
        least=0.3,
    ),
    Panel("target variance between clips", {"variance": ""}, scale="log"),
    Panel("its share of the total variance", {"variance_share": ""}),
    Panel("RankMe of the targets", {"rankme": ""}, least=4.0),
)
ARRANGEMENTS = {
    1: "0",
    2: "01",
    3: "012",
    4: "01;23",
    5: "001;234",
    6: "012;345",
}  # no cell stays empty


def draw_curves(
    csv: str | Path,
    path: str | Path,
    start: Mapping[str, float] | None = None,
    untrained: Mapping[str, float] | None = None,
) -> None:
    """Draw the loss of a run, and its learning monitors where the log has any.

    Args:
        csv: log with one row per logged loss: ``loss``, ``step`` and the columns of ``PANELS``. A
            log of the release, without ``step``, is drawn over its rows.
        path: image to write.
        start: monitors before the first step, which no row of the log holds.
        untrained: monitors of random weights, drawn as dashed lines where a curve is theirs.

    Raises:
        UserError: if the log cannot be read or holds no loss.
    """
    save_figure(curves_figure(read_log(csv), start, untrained), path)


def read_log(csv: str | Path) -> pd.DataFrame:
    """Read the log of a run, with the step (or, of the release, the row) as its index."""
    try:
        log = pd.read_csv(csv)
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{csv} cannot be read as the log of a run: {error}") from error
    if "loss" not in log or not pd.api.types.is_numeric_dtype(log["loss"].dropna()):
        raise UserError(f"{csv} has no column of numbers named 'loss'; is it the log of a run?")
    if not log["loss"].notna().any():
        raise UserError(f"{csv} holds no loss yet: no step has been logged.")

    index = log["step"] if "step" in log else range(1, len(log) + 1)
    name = "optimizer step" if "step" in log else "row of the log"
    return log.set_index(pd.Index(index, name=name))


def curves_figure(
    log: pd.DataFrame,
    start: Mapping[str, float] | None = None,
    untrained: Mapping[str, float] | None = None,
) -> Figure:
    """Arrange a panel for everything that was logged; see ``draw_curves``."""
    unit = log.index.name
    log = pd.concat([pd.DataFrame(start or {}, index=[0]), log])
    curves = [
        {name: log[name].dropna() for name in panel.columns if name in log} for panel in PANELS
    ]
    shown = [
        (panel, drawn)
        for panel, drawn in zip(PANELS, curves, strict=True)
        if any(len(curve) for curve in drawn.values())
    ]
    arrangement = ARRANGEMENTS[len(shown)]
    rows = arrangement.split(";")
    figure = Figure(figsize=(4.2 * len(rows[0]), 2.9 * len(rows)), dpi=120, layout="constrained")
    axes = figure.subplot_mosaic(arrangement)
    for place, (panel, drawn) in enumerate(shown):
        draw_panel(axes[str(place)], panel, drawn, untrained or {})
        axes[str(place)].set_xlim(0, log.index.max())
    figure.supxlabel(unit, fontsize=9)
    return figure


def draw_panel(
    axes: Axes, panel: Panel, curves: Mapping[str, pd.Series], untrained: Mapping[str, float]
) -> None:
    """Draw the curves of one panel, by name, over the steps in their index."""
    dashed = {
        name: untrained[name]
        for name in curves
        if panel.untrained and math.isfinite(untrained.get(name, math.nan))
    }
    for color, (name, curve) in zip(COLORS, curves.items(), strict=False):
        style = {"color": color, "linewidth": 1.8, "label": panel.columns[name]}
        if name == "loss":
            window = max(1, len(curve) // 50)
            axes.plot(curve.index, curve, color=color, alpha=0.3, linewidth=0.8)
            curve = curve.rolling(window, center=True, min_periods=1).mean()
            axes.plot(curve.index, curve, **style)
        else:
            axes.plot(curve.index, curve, marker="o", markersize=3, clip_on=False, **style)
        if name in dashed:
            axes.axhline(dashed[name], color=color, linewidth=1.2, linestyle="--")
    set_range(axes, panel, pd.concat([*curves.values(), pd.Series(dashed, dtype=float)]))
    if len(panel.columns) > 1:
        axes.axhline(0, color=REFERENCE, linewidth=1)
        axes.legend(loc="best", frameon=False, fontsize=8)
    axes.set_title(panel.title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(alpha=0.25)


def set_range(axes: Axes, panel: Panel, values: pd.Series) -> None:
    """Set scale and ends of the vertical axis, at least as far apart as the panel says."""
    low, high = values.min(), values.max()
    if panel.scale == "log" and low > 0:
        middle = math.sqrt(low * high)
        factor = max(math.sqrt(high / low) * 1.1, math.sqrt(LEAST_FACTOR))
        axes.set_yscale("log")
        axes.set_ylim(middle / factor, middle * factor)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.minorticks_off()
    else:
        low = min(low, 0.0)
        high = max(high, low + panel.least, 0.0)
        if panel.scale == "symlog":
            axes.set_yscale("symlog", linthresh=LINEAR_UP_TO)
            locator = SymmetricalLogLocator(base=10, linthresh=LINEAR_UP_TO, subs=(1, 3))
            axes.yaxis.set_major_locator(locator)
            high = max(high, LINEAR_UP_TO)
        axes.set_ylim(1.05 * low, 1.05 * high)
    axes.yaxis.set_major_formatter(ScalarFormatter())


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a picture, whole or not at all, in the format that the suffix of ``path`` says."""
    with replacing(path) as file:
        figure.savefig(file, format=Path(path).suffix.removeprefix("."))
