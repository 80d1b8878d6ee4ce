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

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.problem import Problem
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.heads.result import Row
from downstream_tasks.report.figures import draw_results
from downstream_tasks.report.markdown import RESULTS_FILE, RESULTS_FORMAT, results_markdown
from downstream_tasks.report.rows import _split_counts, score_rows
from downstream_tasks.scoring.metrics import (
    metric_names,
)
from src.utils.files import replacing, write_text
from src.utils.logging import TensorBoard, git_revision


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
