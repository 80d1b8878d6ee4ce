"""The table as a picture: every row with its interval on the main metric, the model marked."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from downstream_tasks.report.cells import METRIC_TITLES, undefined
from downstream_tasks.report.comparisons import CHANCE
from downstream_tasks.report.results import MethodResult, Results

# Okabe and Ito's palette, which colour-blind readers tell apart; the marker tells the kind as well.
KINDS = {
    "model": ("model", "#0072b2", "D"),
    "readout": ("readouts of the model", "#56b4e9", "d"),
    "baseline": ("without a trained encoder", "#000000", "o"),
    "joint": ("a baseline with the model", "#009e73", "^"),
    "control": ("controls", "#d55e00", "s"),
}
ROW_HEIGHT = 0.24  # inches
_LABEL_WIDTH = 68  # letters: the controls of time under the longest name of a head


class _Line(NamedTuple):
    y: float
    row: MethodResult


def shortened(text: str, width: int) -> str:
    """At most ``width`` letters, without the middle: names differ at their ends."""
    if len(text) <= width:
        return text
    end = (width - 3) // 2
    return f"{text[: width - 3 - end]}...{text[-end:]}"


def forest_height(results: Results) -> float:
    """Inches that :func:`draw_forest` needs: a line for each row, and for each kind."""
    return 1.0 + ROW_HEIGHT * (len(results.rows) + len({row.kind for row in results.rows}))


def draw_forest(axes: Axes, results: Results) -> None:
    """Mean and interval of every row in the main metric, by kind, in the order of the table."""
    metric, lines = results.main_metric, []
    position = 0.0
    ticks: list[tuple[float, str, str]] = []
    for kind, (title, _, _) in KINDS.items():
        rows = [row for row in results.rows if row.kind == kind]
        if rows:
            ticks.append((position, title, "bold"))
            position += 1
        for row in rows:
            lines.append(_Line(position, row))
            ticks.append((position, shortened(row.label, _LABEL_WIDTH), "normal"))
            position += 1
    for y, row in lines:
        _, color, marker = KINDS[row.kind]
        mean, bounds = row.mean[metric], row.interval.get(metric, (np.nan, np.nan))
        if not any(map(undefined, bounds)):
            axes.plot(bounds, (y, y), color=color, linewidth=1.6, solid_capstyle="butt")
        size = 7 if row.kind == "model" else 4.5
        axes.plot([mean], [y], marker=marker, color=color, markersize=size, linestyle="none")
        text = "n/a" if undefined(mean) else f"{mean:.3f}"
        axes.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), fontsize=7, va="center")
    if (model := results.model) is not None:
        bounds = model.interval.get(metric, (np.nan, np.nan))
        if not any(map(undefined, bounds)):
            axes.axvspan(*bounds, color=KINDS["model"][1], alpha=0.1, linewidth=0)
    nothing = [row for row in results.rows if row.representation in ("majority", CHANCE)]
    if nothing and not undefined(nothing[0].mean[metric]):
        axes.axvline(nothing[0].mean[metric], color="#999999", linewidth=1, linestyle="--")
        axes.set_title(f"dashed: {nothing[0].name.lower()}", fontsize=7, loc="right")
    label_rows(axes, ticks, fontsize=7.5)
    axes.grid(axis="x", color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"{METRIC_TITLES[metric]}, mean and 95 % interval")


def label_rows(axes: Axes, ticks: Sequence[tuple[float, str, str]], fontsize: float) -> None:
    """Name the rows of a forest plot, the first on top: position, text and weight of each."""
    axes.set_ylim(ticks[-1][0] + 0.6, -0.6)
    axes.set_yticks([y for y, _, _ in ticks], [text for _, text, _ in ticks], fontsize=fontsize)
    for tick, (_, _, weight) in zip(axes.get_yticklabels(), ticks, strict=True):
        tick.set_fontweight(weight)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
