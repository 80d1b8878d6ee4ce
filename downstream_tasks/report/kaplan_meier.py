"""Kaplan-Meier curves of the halves of the test people at higher and at lower predicted risk."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from downstream_tasks.scoring.survival import kaplan_meier, times_and_events


def draw_risk_halves(
    axes: Axes, tested: Sequence[tuple[np.ndarray, np.ndarray]], title: str, unit: str
) -> None:
    """``tested`` are signed times and risks of the test people of each run, who are in one only.

    Halves are made within each run: risks of two fits have no scale in common.
    """
    y = np.concatenate([times for times, _ in tested])
    high = np.concatenate([risk > np.median(risk) for _, risk in tested])
    for members, color, label in ((~high, "#0072b2", "lower"), (high, "#d55e00", "higher")):
        if members.any():
            steps, share = kaplan_meier(y[members])
            longest = times_and_events(y[members])[0].max()
            name = f"{label} risk ({members.sum()}, {(y[members] > 0).sum()} events)"
            axes.step(
                np.r_[steps, longest],
                np.r_[share, share[-1]],
                where="post",
                color=color,
                label=name,
            )
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(f"time ({unit})" if unit else "time")
    axes.set_ylabel("share without the event")
    axes.set_title(title, fontsize=8)
    axes.legend(fontsize=7)
