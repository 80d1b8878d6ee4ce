"""The figure of a result folder: the table as a forest plot, then what lies behind it."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.problem import Problem
from downstream_tasks.heads.result import FittedMethod, HeadResult
from downstream_tasks.report.comparisons import UNTRAINED, best_baseline
from downstream_tasks.report.forest import draw_forest, forest_height, shortened
from downstream_tasks.report.kaplan_meier import draw_risk_halves
from downstream_tasks.report.reliability import draw_reliability
from downstream_tasks.report.results import Results
from downstream_tasks.scoring.calibration import reliability_curve
from downstream_tasks.scoring.metrics import confusion_matrix
from src.utils.curves import save_figure

# Okabe and Ito's palette, which colour-blind readers tell apart.
_COLORS = ("#0072b2", "#000000", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
_PANEL = 3.6  # inches
_NOTE_LINE = 0.115  # inches
_LETTERS_PER_INCH = 17.5  # of a note
_LEGEND_WIDTH = 30  # letters
_FORMATS = ("png", "svg")


def draw_results(
    folder: Path,
    results: Results,
    cohort: Cohort,
    problems: Sequence[Problem],
    methods: Sequence[FittedMethod],
) -> None:
    """Draw the table and, of its main rows, the test people of all runs; PNG and SVG.

    ``methods`` are those of ``results.rows``, in their order.
    """
    model, shown = methods[0], _main_rows(results, methods)
    curves = [result.history for result in model.results if result.history]
    # A person's scatter is of three methods: the model, FC and the best row without an encoder.
    scattered = (
        [] if cohort.is_classification else [m for m in shown if m.representation != UNTRAINED]
    )
    n_panels = 3 if cohort.is_classification else len(scattered)
    figure, panels = _figure(results, n_panels + bool(curves))
    axes = iter(panels)
    if cohort.is_classification:
        _draw_roc(next(axes), cohort, problems, shown)
        _draw_confusion(next(axes), cohort, problems, model)
        _draw_reliability(next(axes), cohort, problems, methods)
    for method in scattered:
        if cohort.survival:
            once = [p.seed == problems[0].seed for p in problems]  # folds of one repeat
            tested = [
                _test_units(cohort, problem, result)
                for problem, result, kept in zip(problems, method.results, once, strict=True)
                if kept
            ]
            label = shortened(f"{method.name}, {method.head}", 2 * _LEGEND_WIDTH)
            draw_risk_halves(next(axes), tested, label, results.target_unit)
        else:
            _draw_scatter(next(axes), results, cohort, problems, method)
    if curves:
        _draw_learning_curve(next(axes), curves)
    _save(figure, folder)


def draw_table(folder: Path, results: Results) -> None:
    """Draw the table alone, where nothing else is to be shown (fingerprinting)."""
    figure, _ = _figure(results, 0)
    _save(figure, folder)


def _figure(results: Results, n_panels: int) -> tuple[Figure, list[Axes]]:
    """A figure with the forest plot on top, ``n_panels`` below it and the notes at the foot."""
    width = max(_PANEL * n_panels, 2 * _PANEL)
    notes = [f"- {note}" for note in results.all_notes]
    wrapped = [textwrap.wrap(note, int(_LETTERS_PER_INCH * width)) for note in notes]
    text = "\n".join(line for lines in wrapped for line in lines)
    foot = _NOTE_LINE * (text.count("\n") + 2) if text else 0.0
    heights = [forest_height(results), _PANEL][: 1 + bool(n_panels)]
    figure = Figure(figsize=(width, sum(heights) + foot), dpi=150, layout="constrained")
    heights[-1] += foot
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    draw_forest(parts[0].subplots(), results)
    parts[0].suptitle(f"{results.task}: {results.protocol}", fontsize=9)
    if text:
        parts[-1].supxlabel(text, fontsize=6, x=0.01, ha="left")
    panels = parts[1].subplots(1, n_panels, squeeze=False)[0] if n_panels else ()
    return figure, list(panels)


def _save(figure: Figure, folder: Path) -> None:
    for suffix in _FORMATS:
        save_figure(figure, folder / f"figure.{suffix}")


def _main_rows(results: Results, methods: Sequence[FittedMethod]) -> list[FittedMethod]:
    """The model, FC, the best row without a trained encoder and the untrained encoder."""
    best, fc = best_baseline(results.rows, results.main_metric), results.fc
    untrained = next((row for row in results.rows if row.representation == UNTRAINED), None)
    wanted = [results.rows[0], fc, best, untrained]
    labels = dict.fromkeys(row.label for row in wanted if row is not None)
    by_label = {row.label: m for row, m in zip(results.rows, methods, strict=True)}
    return [by_label[label] for label in labels]


def _test_units(
    cohort: Cohort, problem: Problem, result: HeadResult
) -> tuple[np.ndarray, np.ndarray]:
    _, scores, y = cohort.unit_mean(result.scores[problem.split.test], problem.split.test)
    return y, scores


def _draw_roc(
    axes: Axes, cohort: Cohort, problems: Sequence[Problem], rows: Sequence[FittedMethod]
) -> None:
    """Mean ROC over runs: of ``rows`` for two classes, of every class of the first for more."""
    binary = len(cohort.classes) == 2
    curves = (
        [
            (shortened(f"{row.name}, {row.head}", _LEGEND_WIDTH), row, 1)
            for row in rows
            if row.representation != "majority"
        ]
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
    slanted = {"rotation": 30, "ha": "right"} if sum(map(len, cohort.classes)) > 12 else {}
    axes.set_xticks(ticks, cohort.classes, **slanted)
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
    axes: Axes, results: Results, cohort: Cohort, problems: Sequence[Problem], method: FittedMethod
) -> None:
    """One point a scored unit: the mean of what the runs predict, in the target's own unit."""
    total, count = np.zeros(len(cohort.units)), np.zeros(len(cohort.units))
    true = np.zeros(len(cohort.units))
    for problem, result in zip(problems, method.results, strict=True):
        test = problem.split.test
        units, scores, y = cohort.unit_mean(result.scores[test], test)
        total[units] += scores * problem.target.scale + problem.target.mean
        count[units] += 1
        true[units] = y
    tested = count > 0
    y, guess = true[tested], total[tested] / count[tested]
    color = _COLORS[0] if method.representation == "model" else _COLORS[1]
    axes.scatter(y, guess, s=10, alpha=0.6, color=color, linewidths=0)
    limits = [min(y.min(), guess.min()), max(y.max(), guess.max())]
    axes.plot(limits, limits, color="#999999", linewidth=0.8, linestyle="--")
    axes.set_aspect("equal", adjustable="datalim")
    name = results.target + (f" ({results.target_unit})" if results.target_unit else "")
    axes.set(xlabel=f"true {name}", ylabel=f"predicted {name}")
    varies = len(y) > 1 and np.ptp(y) > 0 and np.ptp(guess) > 0
    r = f"{np.corrcoef(y, guess)[0, 1]:.2f}" if varies else "n/a"
    units = "people" if results.unit == "person" else f"{results.unit}s"
    said = f"r {r}, MAE {np.abs(y - guess).mean():.3g}, {tested.sum()} {units}"
    label = shortened(f"{method.name}, {method.head}", 2 * _LEGEND_WIDTH)
    axes.set_title(f"{label}\n{said}", fontsize=8)


def _draw_learning_curve(axes: Axes, curves: Sequence[Sequence[dict[str, float]]]) -> None:
    for name, color in (("train_loss", _COLORS[0]), ("valid_loss", _COLORS[1])):
        for i, history in enumerate(curves):
            points = [(row["epoch"], row[name]) for row in history if name in row]
            if points:
                label = name.replace("_", " ") if i == 0 else None
                axes.plot(*zip(*points, strict=True), color=color, linewidth=1, label=label)
    axes.set(xlabel="epoch", ylabel="loss", title="chosen setting, every run")
    axes.legend(fontsize=7)
