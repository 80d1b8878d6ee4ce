"""The figure of an experiment: paired differences with intervals, and curves over a number."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from downstream_tasks.report.forest import ROW_HEIGHT, label_rows, shortened
from scripts.ablation.endpoints import Comparison
from scripts.ablation.experiment import Plan
from scripts.ablation.report import p_value
from scripts.ablation.table import LESS_IS_BETTER
from src.utils.curves import save_figure

# Okabe and Ito's palette, which colour-blind readers tell apart.
_ROLES = {"model": "#0072b2", "untrained": "#d55e00", "raw": "#000000"}
_PANEL = 3.2  # inches
_LABEL_WIDTH = 60  # letters


def draw(
    folder: Path, plan: Plan, table: pd.DataFrame, comparisons: Sequence[Comparison]
) -> list[Path]:
    """Write ``figure.png`` and ``figure.svg``; return their paths (none without a comparison)."""
    if not comparisons:
        return []
    axis = plan.axis
    curves = _curves(comparisons) if axis else []
    heights = [1.2 + ROW_HEIGHT * (len(comparisons) + len(_by_endpoint(comparisons)))]
    heights += [_PANEL] if curves else []
    width = max(9.0, _PANEL * len(curves))
    figure = Figure(figsize=(width, sum(heights)), dpi=150, layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _draw_forest(parts[0].subplots(), comparisons)
    parts[0].suptitle(f"{plan.experiment.name} ({plan.experiment.stage})", fontsize=9)
    if curves:
        panels = parts[1].subplots(1, len(curves), squeeze=False)[0]
        for axes, key in zip(panels, curves, strict=True):
            _draw_curve(axes, table, key, *axis)
    paths = [folder / f"figure.{suffix}" for suffix in ("png", "svg")]
    for path in paths:
        save_figure(figure, path)
    return paths


def _by_endpoint(comparisons: Sequence[Comparison]) -> dict[tuple[str, str], list[Comparison]]:
    found: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in comparisons:
        found.setdefault((comparison.endpoint.title, comparison.data), []).append(comparison)
    return found


def _draw_forest(axes: Axes, comparisons: Sequence[Comparison]) -> None:
    """Mean difference and interval of each comparison, under the endpoint it belongs to."""
    ticks: list[tuple[float, str, str]] = []
    position = 0.0
    for (title, data), rows in _by_endpoint(comparisons).items():
        ticks.append((position, shortened(f"{title} ({data})", _LABEL_WIDTH), "bold"))
        position += 1
        for row in rows:
            excluded = row.found.low > 0 or row.found.high < 0
            color = "#0072b2" if excluded else "#999999"
            axes.plot((row.found.low, row.found.high), (position, position), color=color)
            axes.plot([row.found.mean], [position], "o", color=color, markersize=5)
            text = f"{row.found.gain}/{row.found.n}, Holm {p_value(row.holm)}"
            place = ("axes fraction", "data")
            axes.annotate(text, (1.01, position), xycoords=place, fontsize=7, va="center")
            ticks.append((position, shortened(row.label, _LABEL_WIDTH), "normal"))
            position += 1
    axes.axvline(0.0, color="#999999", linewidth=1, linestyle="--")
    label_rows(axes, ticks, fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlabel(
        "paired difference over people, mean and 95 % interval (positive: better)", fontsize=8
    )


def _curves(comparisons: Sequence[Comparison]) -> list[tuple[str, str, str, str]]:
    """Data set, task, variant and metric of the endpoints, each once."""
    return list(
        dict.fromkeys(
            (c.data, c.endpoint.task, c.endpoint.variant, c.endpoint.metric) for c in comparisons
        )
    )


def _draw_curve(
    axes: Axes,
    table: pd.DataFrame,
    key: tuple[str, str, str, str],
    name: str,
    values: dict[str, float],
) -> None:
    """Scores of the arms over the number in which they differ: model, untrained, best raw row."""
    data, task, variant, metric = key
    rows = table[(table["data"] == data) & (table["task"] == task) & (table["metric"] == metric)]
    rows = rows[rows["variant"] == variant] if variant else rows
    for role, color in _ROLES.items():
        of_role = rows[rows["role"] == role]
        if of_role.empty:
            continue
        of_person = of_role.groupby(["method", "arm", "participant_id"])["value"].mean()
        of_arm = of_person.groupby(["method", "arm"]).mean().groupby("arm")
        mean = of_arm.min() if metric in LESS_IS_BETTER else of_arm.max()
        x = np.array([values[arm] for arm in mean.index], dtype=float)
        order = np.argsort(x)
        axes.plot(x[order], mean.to_numpy()[order], "o-", color=color, label=role, markersize=4)
    if min(values.values()) > 0 and max(values.values()) >= 8 * min(values.values()):
        axes.set_xscale("log")
    title = " ".join(filter(None, (task, variant)))
    axes.set(xlabel=name, ylabel=f"{metric}, mean over people", title=f"{title} ({data})")
    axes.title.set_fontsize(8)
    axes.legend(fontsize=7)
