"""``results.md``: the table of a result folder in words and numbers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from downstream_tasks.report.cells import (
    METRIC_TITLES,
    interval_text,
    markdown_table,
    mean_sd_text,
    p_text,
)
from downstream_tasks.report.cells import undefined as _undefined
from downstream_tasks.report.comparisons import PICKED, UNTRAINED, best_baseline
from downstream_tasks.report.published import published_text
from downstream_tasks.report.results import MethodResult, Results
from downstream_tasks.report.signal import signal_summary
from downstream_tasks.report.studies import curve_text, permutation_text
from downstream_tasks.scoring.metrics import direction
from downstream_tasks.scoring.paired import verdict

_RUNS = {
    "one_split": " on one split",
    "resampled": ", each with new people",
    "folds": ", whose test people are folds: everyone is tested once in each repeat",
}


def results_markdown(results: Results) -> str:
    """The text of ``results.md``."""
    results = _in_its_own_unit(results)
    parts = [
        f"# {results.task}: {results.protocol}",
        signal_summary(results) if results.type == "signal" else _verdict(results),
        _describe_data(results),
        markdown_table(*_result_columns(results)),
        _legend(results),
        _comparisons(results),
        _settings(results),
        _notes(results),
        permutation_text(results),
        curve_text(results),
        published_text(results),
        _confusion(results),
        _chosen(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _in_its_own_unit(results: Results) -> Results:
    """Without the columns in z where the target was not z-scored.

    With ``label_normalization: false`` errors are in the target's own unit, under both names.
    """
    of_z = {"mse": "mse_raw", "mae": "mae_raw"}
    means = [row.mean for row in results.rows]
    if results.type != "regression" or any(mean["mse"] != mean["mse_raw"] for mean in means):
        return results
    return dataclasses.replace(
        results,
        metrics=tuple(metric for metric in results.metrics if metric not in of_z),
        main_metric=of_z.get(results.main_metric, results.main_metric),
    )


def _result_columns(results: Results) -> tuple[list[str], list[list[str]]]:
    metric, fc = results.main_metric, results.fc
    shown = [metric, *(m for m in results.metrics if m != metric)]
    against_fc = [results.comparison(row, fc) for row in results.rows]
    with_fc = any(against_fc)
    with_test = any(c is not None and not _undefined(c.p) for c in against_fc)
    header = ["Method", "Head", METRIC_TITLES[metric], "95 % interval"]
    header += [METRIC_TITLES[m] for m in shown[1:]]
    header += ["Difference from FC"] if with_fc else []
    header += ["p"] if with_test else []
    with_size = any(row.trained_parameters for row in results.rows)
    header += ["Trained parameters"] if with_size else []
    lines = []
    for row in results.rows:
        cells = [row.name, row.head, mean_sd_text(row.mean[metric], row.sd[metric])]
        cells.append(interval_text(row.interval[metric]))
        cells += [mean_sd_text(row.mean[m], row.sd[m]) for m in shown[1:]]
        versus = results.comparison(row, fc)
        if with_fc:
            cells.append(
                f"{versus.difference:+.3f} ({interval_text(versus.interval)})"
                if versus and not _undefined(versus.difference)
                else ""
            )
        if with_test:
            cells.append("" if not versus or _undefined(versus.p) else f"{versus.p:.3f}")
        if with_size:
            cells.append(f"{row.trained_parameters:,}" if row.trained_parameters else "")
        lines.append(cells)
    return header, lines


def _describe_data(results: Results) -> str:
    cohort = results.cohort
    who = f"{cohort.n_people} people, {cohort.n_units} scored {results.unit}s"
    if cohort.class_counts is not None:
        who += " (" + ", ".join(f"{k} {n}" for k, n in cohort.class_counts.items()) + ")"
    elif cohort.n_events is not None:
        of_median = f"median follow-up {cohort.median_time:.4g} {results.target_unit}".rstrip()
        who += f" ({results.target}: {cohort.n_events} had the event; {of_median})"
    elif cohort.target_mean is not None:
        who += f" ({results.target}: mean {cohort.target_mean:.4g}, SD {cohort.target_sd:.4g})"
    text = [who + "."]
    if results.splits:
        n = len(results.splits)
        parts = (
            ("training", [split.train for split in results.splits]),
            ("validation", [split.valid for split in results.splits]),
            ("test", [split.test for split in results.splits]),
        )
        people = [f"{part} {_span(sizes)}" for part, sizes in parts if any(sizes)]
        runs = f"{n} run{'s' if n > 1 else ''}{_RUNS[results.design]}"
        text.append(f"People of a run: {', '.join(people)}; {runs}.")
    text.append(f"Model: {results.checkpoint.path}.")
    return " ".join(text)


def _legend(results: Results) -> str:
    if results.type == "signal":
        return (
            "Mean (SD) over test people, and its 95 % t interval over them (families): what other "
            "test people might give. R2: 1 - SSE / SST over all hidden values of a person, SST "
            "about the training mean of each ROI. Paired comparisons are over people: p by sign "
            "flips, and adjusted for all comparisons of this table (Holm)."
        )
    text = "Mean over runs (SD where they differ). The interval is over people (families, sites): "
    if results.design != "one_split":
        text += "what other splits of such people might give (corrected for the people they share)."
    else:
        text += "what other test people might give, not what other training people would."
    if results.comparisons:
        text += (
            f" Difference from FC: in {METRIC_TITLES[results.main_metric]}, paired over the same "
            "people, with its interval."
        )
    tests = dict.fromkeys(c.test.split(", ")[0] for c in results.comparisons if c.test)
    if tests:
        text += f" p: {', '.join(tests)}."
    if any(_undefined(value) for row in results.rows for value in row.mean.values()):
        text += " n/a: not defined, such as the correlation of a constant."
    return text


def _settings(results: Results) -> str:
    """What was done, in a line."""
    if not results.settings:
        return ""
    return "Settings: " + "; ".join(f"{k}: {v}" for k, v in results.settings.items()) + "."


def _notes(results: Results) -> str:
    """What qualifies the evaluation, then what qualifies single rows."""
    notes = results.all_notes
    return "Notes:\n\n" + "\n".join(f"- {note}" for note in notes) if notes else ""


def _verdict(results: Results) -> str:
    """Whether the model beats everything that needs no pretraining, and FC, cautiously."""
    model, best = results.model, best_baseline(results.rows, results.main_metric)
    if model is None or best is None or _undefined(model.mean[results.main_metric]):
        return ""
    untrained = next((row for row in results.rows if row.representation == UNTRAINED), None)
    fc_name = "plain functional connectivity"
    if results.unit == "event":
        fc_name = "connectivity within the event's patch"
    named = [(results.fc, fc_name), (untrained, "its untrained copy"), (best, best.label)]
    sentences = {}
    for row, name in named:
        if row is not None and row.label not in sentences:
            name += ", the best row without a trained encoder" if row is best else ""
            sentences[row.label] = _finding(results, model, row, name)
    sign = direction(results.main_metric)
    of_model = sign * model.mean[results.main_metric]
    ahead = [
        row.label
        for row in results.rows
        if row.kind in ("baseline", "control")
        and not (row.other_target or row.confounds_removed)
        and sign * row.mean[results.main_metric] > of_model
    ]
    if ahead:
        sentences["ahead"] = (
            f"Rows with a better {METRIC_TITLES[results.main_metric]} than the model: "
            f"{', '.join(ahead)}."
        )
    return " ".join(filter(None, sentences.values()))


def _comparisons(results: Results) -> str:
    """The comparisons that do not stand in the table, whose reference is FC."""
    fc = results.fc
    shown = [c for c in results.comparisons if fc is None or c.reference != fc.label]
    lines = [
        [
            f"{c.method} - {c.reference}",
            f"{METRIC_TITLES[c.metric]} {c.difference:+.3f}",
            interval_text(c.interval),
            p_text(c.p),
        ]
        for c in shown
    ]
    header = ["Paired comparison", "Difference", "95 % interval", "p"]
    if any(c.n_gain is not None for c in shown):
        header += ["p (Holm)", "People who gain"]
        for line, c in zip(lines, shown, strict=True):
            line += [p_text(c.p_adjusted), f"{c.n_gain} of {c.n_people}"]
    return markdown_table(header, lines) if lines else ""


def _finding(results: Results, model: MethodResult, row: MethodResult, name: str) -> str:
    """A sentence about the model beside ``row``, no stronger than their comparison."""
    metric = results.main_metric
    versus = results.comparison(model, row)
    if versus is None or _undefined(versus.difference):
        return ""
    sign = direction(metric)
    finding = {
        "above": "better than" if sign > 0 else "worse than",
        "below": "worse than" if sign > 0 else "better than",
        "not told apart": "not told apart from",
        "borderline": "on the border of being told apart from",
        "no interval": "not tested against",
    }[verdict(versus.interval, versus.p)]
    numbers = f"{METRIC_TITLES[metric]} {versus.difference:+.3f}"
    numbers += f", {interval_text(versus.interval)}"
    if not _undefined(versus.p):
        numbers += f", p {versus.p:.3f}" if versus.p >= 0.001 else ", p below .001"
    text = f"On these people the model is **{finding}** {name} ({numbers}, paired)."
    if finding.startswith("on the border"):
        text += " Interval and test disagree there."
    if finding.startswith("not tested"):
        text += " There is no interval: the same difference in every run, or too few test people."
    if PICKED in versus.test:
        text += " That row is the best on these very people, which flatters it a little."
    return text


def _confusion(results: Results) -> str:
    first = results.rows[0]
    tables = [run.confusion for run in first.runs if run.confusion is not None]
    if not tables:
        return ""
    n = range(len(results.classes))
    total = [[sum(table[i][j] for table in tables) for j in n] for i in n]
    header = [f"{first.name}: true", *(f"called {label}" for label in results.classes)]
    lines = [
        [label, *map(str, counts)] for label, counts in zip(results.classes, total, strict=True)
    ]
    return "Confusion matrix, all runs together:\n\n" + markdown_table(header, lines)


def _chosen(results: Results) -> str:
    """The settings of every row that were picked without the test people."""
    lines = [text for row in results.rows if (text := _chosen_of(row))]
    if not lines:
        return ""
    title = f"Settings picked without the test people, by {METRIC_TITLES[results.main_metric]}:"
    return "\n\n".join([title, "\n".join(lines)])


def _chosen_of(row: MethodResult) -> str:
    texts = [
        ", ".join(f"{k} {_short(v)}" for k, v in run.chosen.items())
        for run in row.runs
        if run.chosen
    ]
    return f"- {row.label}: {'; '.join(texts)}" if texts else ""


def _span(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return str(low) if low == high else f"{low} to {high}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
