"""The figure of a result folder: ROC or scatter, confusion matrix, learning curve."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.problem import Problem
from downstream_tasks.heads.result import FittedMethod, HeadResult
from downstream_tasks.report.reliability import draw_reliability
from downstream_tasks.scoring.calibration import reliability_curve
from downstream_tasks.scoring.metrics import confusion_matrix
from src.utils.curves import save_figure

_COLORS = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377"),
    *("#bbbbbb", "#222222", "#ee9933", "#88bb99", "#775533"),
)


def draw_results(
    path: Path, cohort: Cohort, problems: Sequence[Problem], rows: Sequence[FittedMethod]
) -> None:
    """Draw the first row, and what it is compared with, on the test people of all runs."""
    model = rows[0]
    curves = [result.history for result in model.results if result.history]
    panels = 1 + 2 * cohort.is_classification + bool(curves)
    figure = Figure(figsize=(4.2 * panels, 4), dpi=150, layout="constrained")
    axes = iter(figure.subplots(1, panels, squeeze=False)[0])
    if cohort.is_classification:
        _draw_roc(next(axes), cohort, problems, rows)
        _draw_confusion(next(axes), cohort, problems, model)
        _draw_reliability(next(axes), cohort, problems, rows)
    else:
        _draw_scatter(next(axes), cohort, problems, model)
    if curves:
        _draw_learning_curve(next(axes), curves)
    save_figure(figure, path)


def _test_units(
    cohort: Cohort, problem: Problem, result: HeadResult
) -> tuple[np.ndarray, np.ndarray]:
    _, scores, y = cohort.unit_mean(result.scores[problem.split.test], problem.split.test)
    return y, scores


def _draw_roc(
    axes: Axes, cohort: Cohort, problems: Sequence[Problem], rows: Sequence[FittedMethod]
) -> None:
    """Mean ROC over runs: of every row for two classes, of every class of the model for more."""
    binary = len(cohort.classes) == 2
    curves = (
        [(f"{row.name}, {row.head}", row, 1) for row in rows if row.name != "Majority class"]
        if binary
        else [(label, rows[0], c) for c, label in enumerate(cohort.classes)]
    )
    grid = np.linspace(0, 1, 101)
    for i, (label, row, positive) in enumerate(curves):
        rates = []
        for problem, result in zip(problems, row.results, strict=True):
            y, scores = _test_units(cohort, problem, result)
            is_positive = y == positive
            if is_positive.any() and not is_positive.all():
                false, true, _ = roc_curve(is_positive, scores[:, positive])
                rates.append(np.interp(grid, false, true))
        if rates:
            color = _COLORS[i % len(_COLORS)]
            width = 2.2 if row is rows[0] else 1.1
            mean = np.mean(rates, axis=0)
            mean[0] = 0.0  # a curve starts there, however steep
            axes.plot(grid, mean, label=label, color=color, linewidth=width)
    axes.plot([0, 1], [0, 1], color="#cccccc", linewidth=0.8, linestyle="--")
    title = f"positive: {cohort.classes[1]}" if binary else "one class against the rest"
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title=f"ROC, {title}")
    axes.legend(fontsize=5.5, loc="lower right")


def _draw_confusion(
    axes: Axes, cohort: Cohort, problems: Sequence[Problem], model: FittedMethod
) -> None:
    counts = sum(
        confusion_matrix(*_test_units(cohort, problem, result))
        for problem, result in zip(problems, model.results, strict=True)
    )
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        color = "white" if share[i, j] > 0.6 else "black"
        axes.text(j, i, f"{share[i, j]:.2f}\n({count})", ha="center", va="center", color=color)
    ticks = range(len(cohort.classes))
    axes.set_xticks(ticks, cohort.classes)
    axes.set_yticks(ticks, cohort.classes)
    axes.set(xlabel="predicted", ylabel="true", title=f"{model.name}: share of each true class")


def _draw_reliability(
    axes: Axes, cohort: Cohort, problems: Sequence[Problem], rows: Sequence[FittedMethod]
) -> None:
    """Of the model, and of functional connectivity beside it."""
    shown = [rows[0], *(row for row in rows[1:] if row.representation == "fc")][:2]
    curves = []
    for row in shown:
        units = [_test_units(cohort, p, r) for p, r in zip(problems, row.results, strict=True)]
        y, scores = map(np.concatenate, zip(*units, strict=True))
        curves.append((f"{row.name}, {row.head}", reliability_curve(y, scores)))
    event = f"probability of {cohort.classes[1]}"
    draw_reliability(axes, curves, event if len(cohort.classes) == 2 else "class called", _COLORS)


def _draw_scatter(
    axes: Axes, cohort: Cohort, problems: Sequence[Problem], model: FittedMethod
) -> None:
    for i, (problem, result) in enumerate(zip(problems, model.results, strict=True)):
        y, scores = _test_units(cohort, problem, result)
        guess = scores * problem.target.scale + problem.target.mean
        color = _COLORS[i % len(_COLORS)]
        axes.scatter(y, guess, s=9, alpha=0.7, color=color, label=problem.name)
    limits = [cohort.y.min(), cohort.y.max()]
    axes.plot(limits, limits, color="#cccccc", linewidth=0.8, linestyle="--")
    axes.set(xlabel="target", ylabel="predicted", title=f"{model.name}, test people")
    axes.legend(fontsize=6)


def _draw_learning_curve(axes: Axes, curves: Sequence[Sequence[dict[str, float]]]) -> None:
    for name, color in (("train_loss", _COLORS[0]), ("valid_loss", _COLORS[1])):
        for i, history in enumerate(curves):
            points = [(row["epoch"], row[name]) for row in history if name in row]
            if points:
                label = name.replace("_", " ") if i == 0 else None
                axes.plot(*zip(*points, strict=True), color=color, linewidth=1, label=label)
    axes.set(xlabel="epoch", ylabel="loss", title="chosen setting, every run")
    axes.legend(fontsize=7)
