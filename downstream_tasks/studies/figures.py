"""Pictures of studies."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from downstream_tasks.report.cells import METRIC_TITLES
from downstream_tasks.report.results import CurvePoint
from src.utils.curves import save_figure

CURVE_FIGURE = "learning_curve.png"
_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")


def save_learning_curve(folder: Path, points: Sequence[CurvePoint], metric: str) -> None:
    """Write :data:`CURVE_FIGURE` to ``folder``."""
    figure = Figure(figsize=(5.2, 4), dpi=150, layout="constrained")
    draw_learning_curve(figure.subplots(), points, metric)
    save_figure(figure, folder / CURVE_FIGURE)


def draw_learning_curve(axes: Axes, points: Sequence[CurvePoint], metric: str) -> None:
    """Score over the number of training people, on a log axis, with the spread of the draws."""
    sizes = set()
    for i, ((name, head), curve) in enumerate(groupby(points, lambda p: (p.name, p.head))):
        curve = list(curve)
        people = [point.n_people for point in curve]
        color = _COLORS[i % len(_COLORS)]
        axes.plot(
            people,
            [point.mean for point in curve],
            color=color,
            marker="o",
            markersize=3,
            linewidth=2.2 if i == 0 else 1.2,
            label=f"{name}, {head}",
        )
        low, high = zip(*(point.interval for point in curve), strict=True)
        axes.fill_between(people, low, high, color=color, alpha=0.15, linewidth=0)
        sizes.update(people)
    axes.set_xscale("log")
    axes.set_xticks(sorted(sizes))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(
        xlabel="labelled training people (log)",
        ylabel=METRIC_TITLES[metric],
        title="mean and central 95 % of draws, same test people",
    )
    axes.title.set_fontsize(8)
    axes.legend(fontsize=6)
