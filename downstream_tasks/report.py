"""The result folder: every row of the table scored alike, written as numbers, text and a figure.

config.yaml, revision.txt, log.txt   what was run
split_seed*.tsv                      who was in which part
metrics.jsonl, tensorboard/          one line per epoch of what was trained
predictions.tsv                      one line per method, seed and test person
results.json, results.md, figure.png the table, with baselines and intervals
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from downstream_tasks.bootstrap import ScoredRun, bootstrap_metrics, interval
from downstream_tasks.cohort import Cohort
from downstream_tasks.figures import draw_results
from downstream_tasks.heads import HeadResult, Problem, Row
from downstream_tasks.metrics import (
    classification_metrics,
    confusion_matrix,
    corrected_resampled_ttest,
    mean_sd,
    metric_names,
    regression_metrics,
)
from downstream_tasks.tables import RESULTS_FILE, RESULTS_FORMAT, results_markdown
from downstream_tasks.tasks import DownstreamConfig
from src.utils.files import replacing, write_text
from src.utils.logging import TensorBoard, git_revision

FC_NAME = "FC"


def write_report(
    folder: Path,
    config: DownstreamConfig,
    cohort: Cohort,
    problems: Sequence[Problem],
    rows: Sequence[Row],
    checkpoint: Mapping[str, Any],
) -> dict[str, Any]:
    """Score ``rows`` on the test people of ``problems`` and write the result folder.

    ``checkpoint`` says which weights and which input the model had; it goes into the results as it
    is. Returns what ``results.json`` holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        "format": RESULTS_FORMAT,
        "task": config.name,
        "protocol": config.protocol,
        "type": config.data.type,
        "target": config.data.target,
        "classes": list(cohort.classes),
        "unit": config.data.unit,
        "metrics": list(metric_names(config.data.type, len(cohort.classes))),
        "main_metric": config.metric,
        "cohort": cohort.summary(),
        "splits": [{"seed": problem.seed} | _split_counts(cohort, problem) for problem in problems],
        "resampled_splits": config.split.resample,
        "checkpoint": dict(checkpoint),
        "revision": git_revision(),
        "published": {k: v for k, v in asdict(config.published).items() if v is not None},
        "rows": score_rows(cohort, problems, rows, config),
    }
    write_results(folder, results, config)
    with replacing(folder / "predictions.tsv") as file:
        predictions_table(cohort, problems, rows).to_csv(
            file, sep="\t", index=False, na_rep="n/a", float_format="%.6g"
        )
    _write_history(folder, problems, rows)
    draw_results(folder / "figure.png", cohort, problems, rows)
    return results


def write_results(folder: Path, results: Mapping[str, Any], config: DownstreamConfig) -> None:
    """Write ``config.yaml``, ``revision.txt``, ``results.json`` and ``results.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
    write_text(folder / "revision.txt", results["revision"] + "\n")
    with replacing(folder / RESULTS_FILE) as file:
        file.write(json.dumps(without_nan(results), indent=1).encode() + b"\n")
    write_text(folder / "results.md", results_markdown(results))


def score_rows(
    cohort: Cohort, problems: Sequence[Problem], rows: Sequence[Row], config: DownstreamConfig
) -> list[dict[str, Any]]:
    """Metrics of every row per run, mean, SD, intervals over people and the comparison with FC."""
    scored = []
    for row in rows:
        runs = [_score(cohort, p, h) for p, h in zip(problems, row.results, strict=True)]
        per_run = [_metrics(cohort, run) for run in runs]
        samples = bootstrap_metrics(runs, config.evaluation.n_bootstrap)
        line = summary_line(row.name, row.head, row.kind, per_run, samples)
        for entry, problem, run, result in zip(
            line["runs"], problems, runs, row.results, strict=True
        ):
            entry |= {"seed": problem.seed, "chosen": dict(result.chosen)}
            if cohort.is_classification:
                entry["confusion"] = confusion_matrix(run.y, run.scores).tolist()
        scored.append((line, samples))
    splits = problems if config.split.resample else None
    compare_with_fc(scored, config.metric, splits, cohort)
    return [line for line, _ in scored]


def summary_line(
    name: str,
    head: str,
    kind: str,
    per_run: Sequence[Mapping[str, float]],
    samples: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """A row of ``results.json`` from the metrics of its runs and their bootstrap samples."""
    mean, sd = mean_sd(per_run)
    return {
        "name": name,
        "head": head,
        "kind": kind,
        "mean": mean,
        "sd": sd,
        "interval": {metric: interval(values) for metric, values in samples.items()},
        "runs": [{"metrics": dict(metrics)} for metrics in per_run],
    }


def compare_with_fc(
    scored: Sequence[tuple[dict[str, Any], Mapping[str, np.ndarray]]],
    metric: str,
    resampled: Sequence[Problem] | None = None,
    cohort: Cohort | None = None,
) -> None:
    """Add ``versus_fc`` to every line but that of FC: the paired difference in ``metric``.

    The interval comes from resampling the same people for both. The corrected resampled t-test is
    for new splits per run (``resampled``); on one split, runs differ by their seed only, and a test
    over seeds would say nothing about people.
    """
    reference = next(((line, s) for line, s in scored if line["name"] == FC_NAME), None)
    if reference is None:
        return
    for line, samples in scored:
        if line is reference[0]:
            continue
        here, there = (
            np.array([run["metrics"][metric] for run in each["runs"]])
            for each in (line, reference[0])
        )
        t, p = np.nan, np.nan
        if resampled is not None and cohort is not None:
            sizes = [_split_counts(cohort, problem) for problem in resampled]
            t, p = corrected_resampled_ttest(
                here - there,
                n_train=np.mean([size["train"] for size in sizes]),
                n_test=np.mean([size["test"] for size in sizes]),
            )
        line["versus_fc"] = {
            "metric": metric,
            "difference": float((here - there).mean()),
            "interval": interval(samples[metric] - reference[1][metric]),
            "t": t,
            "p": p,
        }


def predictions_table(
    cohort: Cohort, problems: Sequence[Problem], rows: Sequence[Row]
) -> pd.DataFrame:
    """One line per method, seed and scored unit of the test part; targets in their own unit."""
    parts = []
    for row in rows:
        for problem, result in zip(problems, row.results, strict=True):
            test, target = problem.split.test, problem.target
            units, scores, y = cohort.unit_mean(result.scores[test], test)
            part = cohort.units.iloc[units].reset_index(drop=True)
            part.insert(0, "method", row.name)
            part.insert(1, "head", row.head)
            part.insert(2, "seed", problem.seed)
            if cohort.is_classification:
                names = np.array(cohort.classes)
                part["target"], part["predicted"] = names[y], names[scores.argmax(axis=1)]
                for label, column in zip(cohort.classes, scores.T, strict=True):
                    part[f"p_{label}"] = column
            else:
                part["target"], part["predicted"] = y, scores * target.scale + target.mean
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def without_nan(value: Any) -> Any:
    """The same with NaN and infinity as null, which JSON has no words for."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _score(cohort: Cohort, problem: Problem, result: HeadResult) -> ScoredRun:
    test, target = problem.split.test, problem.target
    units, scores, y = cohort.unit_mean(result.scores[test], test)
    people = cohort.units["participant_id"].to_numpy(str)[units]
    return ScoredRun(target.normalise(y), scores, people, target.scale)


def _metrics(cohort: Cohort, run: ScoredRun) -> dict[str, float]:
    if cohort.is_classification:
        return classification_metrics(run.y, run.scores)
    return regression_metrics(run.y, run.scores, run.scale)


def _split_counts(cohort: Cohort, problem: Problem) -> dict[str, int]:
    """People in each part."""
    return {
        part: len(set(cohort.people[members])) for part, members in problem.split.parts().items()
    }


def _write_history(folder: Path, problems: Sequence[Problem], rows: Sequence[Row]) -> None:
    """Learning curves of what was trained: a line per epoch, and TensorBoard."""
    lines = [
        {"method": row.name, "head": row.head, "seed": problem.seed} | epoch
        for row in rows
        for problem, result in zip(problems, row.results, strict=True)
        for epoch in result.history
    ]
    if not lines:
        return
    with replacing(folder / "metrics.jsonl") as file:
        file.writelines(json.dumps(without_nan(line)).encode() + b"\n" for line in lines)
    with TensorBoard(folder / "tensorboard") as board:
        for line in lines:
            prefix = f"{line['method']}/seed{line['seed']}"
            for name, value in line.items():
                if name not in ("method", "head", "seed", "epoch"):
                    board.add_scalar(f"{prefix}/{name}", value, line["epoch"])
