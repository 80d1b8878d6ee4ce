"""Reliability: how often what is predicted with some probability comes true."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from downstream_tasks.scoring.calibration import ReliabilityBin

_LARGEST_POINT = 90  # square points


def draw_reliability(
    axes: Axes,
    curves: Sequence[tuple[str, Sequence[ReliabilityBin]]],
    event: str,
    colors: Sequence[str],
) -> None:
    """Observed frequency over mean predicted probability; the area of a point is its share.

    ``curves`` are (label, bins), the model first; ``event`` says what the probability is of.
    """
    axes.plot([0, 1], [0, 1], color="#cccccc", linewidth=0.8, linestyle="--")
    for i, ((label, bins), color) in enumerate(zip(curves, colors, strict=False)):
        n = [point.n for point in bins]
        predicted = [point.predicted for point in bins]
        observed = [point.observed for point in bins]
        width = 2.2 if i == 0 else 1.1
        axes.plot(predicted, observed, color=color, linewidth=width, label=label)
        area = [_LARGEST_POINT * k / sum(n) for k in n]
        axes.scatter(predicted, observed, s=area, color=color, linewidths=0)
    axes.set(
        xlim=(-0.03, 1.03),
        ylim=(-0.03, 1.03),
        xlabel="predicted probability",
        ylabel="observed frequency",
        title=f"Reliability, {event}",
    )
    axes.legend(fontsize=5.5, loc="upper left")
