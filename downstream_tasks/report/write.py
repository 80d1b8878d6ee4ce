"""The result folder: every row of the table scored alike, written as numbers, text and a figure.

config.yaml, revision.txt, log.txt   what was run
split_*.tsv                          who was in which part
metrics.jsonl, tensorboard/          one line per epoch of what was trained
predictions.tsv                      one line per method, run and test person
results.json, results.md, table.tsv, figure.png, figure.svg   the table, with intervals
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.problem import Problem, study_design
from downstream_tasks.cohort.splits import run_name
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.heads.result import FittedMethod
from downstream_tasks.report.figures import draw_results
from downstream_tasks.report.markdown import results_markdown
from downstream_tasks.report.results import (
    RESULTS_FILE,
    CheckpointInfo,
    CurvePoint,
    PermutationTest,
    Results,
    without_nan,
)
from downstream_tasks.report.rows import score_rows, split_sizes
from downstream_tasks.scoring.metrics import metric_names
from downstream_tasks.scoring.survival import times_and_events
from src.utils.files import replacing, write_text
from src.utils.logging import TensorBoard, git_revision


def write_report(
    folder: Path,
    config: DownstreamConfig,
    cohort: Cohort,
    problems: Sequence[Problem],
    methods: Sequence[FittedMethod],
    checkpoint: CheckpointInfo,
    *,
    notes: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
    permutations: Sequence[PermutationTest] = (),
    curve: Sequence[CurvePoint] = (),
) -> Results:
    """Score ``methods`` on the test people of ``problems`` and write the result folder.

    ``notes`` are what qualifies the evaluation as a whole, ``settings`` what was done, by name;
    ``permutations`` and ``curve`` are what studies of the methods gave.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, comparisons = score_rows(cohort, problems, methods, config)
    results = Results(
        task=config.name,
        protocol=config.protocol,
        type=config.data.type,
        target=config.data.target,
        target_unit=config.data.target_unit,
        classes=tuple(map(str, cohort.classes)),
        unit=config.data.unit,
        metrics=metric_names(config.data.type, len(cohort.classes)),
        main_metric=config.metric,
        cohort=cohort.summary(),
        splits=split_sizes(cohort, problems),
        design=study_design(problems).kind,
        checkpoint=checkpoint,
        rows=rows,
        comparisons=comparisons,
        published={k: v for k, v in asdict(config.published).items() if v is not None},
        notes=tuple(notes),
        settings=_settings(config) | dict(settings or {}),
        permutations=tuple(permutations),
        learning_curve=tuple(curve),
        revision=git_revision(),
    )
    write_results(folder, results, config)
    with replacing(folder / "predictions.tsv") as file:
        predictions_table(cohort, problems, methods).to_csv(
            file, sep="\t", index=False, na_rep="n/a", float_format="%.6g"
        )
    _write_history(folder, problems, methods)
    draw_results(folder, results, cohort, problems, methods)
    return results


def _settings(config: DownstreamConfig) -> dict[str, str]:
    """What the config says of every row alike."""
    if config.data.type == "survival":
        return {"outcome": f"{config.data.time} to {config.data.event}, or to the last visit"}
    if config.data.type != "classification":
        return {}
    said = {"none": "none, as published", "balanced": "balanced"}
    return {"class weights": said[config.evaluation.class_weights]}


def write_results(folder: Path, results: Results, config: DownstreamConfig) -> None:
    """Write ``config.yaml``, ``revision.txt``, ``results.json``, ``results.md``, ``table.tsv``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
    write_text(folder / "revision.txt", results.revision + "\n")
    results.write(folder / RESULTS_FILE)
    write_text(folder / "results.md", results_markdown(results))
    with replacing(folder / "table.tsv") as file:
        table(results).to_csv(file, sep="\t", index=False, na_rep="n/a", float_format="%.6g")


def table(results: Results) -> pd.DataFrame:
    """The numbers of the table and of its picture: a line for every row and metric."""
    return pd.DataFrame(
        [
            {
                "method": row.name,
                "head": row.head,
                "kind": row.kind,
                "metric": metric,
                "mean": row.mean[metric],
                "sd": row.sd[metric],
                "low": row.interval[metric][0],
                "high": row.interval[metric][1],
            }
            for row in results.rows
            for metric in results.metrics
        ]
    )


def predictions_table(
    cohort: Cohort, problems: Sequence[Problem], methods: Sequence[FittedMethod]
) -> pd.DataFrame:
    """One line per method, seed and scored unit of the test part; targets in their own unit."""
    parts = []
    for row in methods:
        for problem, result in zip(row.problems or problems, row.results, strict=True):
            test, target = problem.split.test, problem.target
            units, scores, y = problem.cohort.unit_mean(result.scores[test], test)
            part = cohort.units.iloc[units].reset_index(drop=True)
            part.insert(0, "method", row.name)
            part.insert(1, "head", row.head)
            part.insert(2, "seed", problem.seed)
            part.insert(3, "fold", problem.fold)
            if problem.draw is not None:
                part.insert(4, "draw", problem.draw)
            part["group"] = cohort.unit_groups[units]
            if cohort.is_classification:
                names = np.array(cohort.classes)
                part["target"], part["predicted"] = names[y], names[scores.argmax(axis=1)]
                for label, column in zip(cohort.classes, scores.T, strict=True):
                    part[f"p_{label}"] = column
            elif cohort.survival:
                part["time"], part["event"] = times_and_events(y)
                part["event"] = part["event"].astype(int)
                part["risk"] = scores  # log of the hazard, against that of a mean person
            else:
                part["target"], part["predicted"] = y, scores * target.scale + target.mean
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _write_history(
    folder: Path, problems: Sequence[Problem], methods: Sequence[FittedMethod]
) -> None:
    """Learning curves of what was trained: a line per epoch, and TensorBoard."""
    lines = [
        {"method": row.name, "head": row.head, "seed": problem.seed, "fold": problem.fold} | epoch
        for row in methods
        for problem, result in zip(problems, row.results, strict=True)
        for epoch in result.history
    ]
    if not lines:
        return
    with replacing(folder / "metrics.jsonl") as file:
        file.writelines(json.dumps(without_nan(line)).encode() + b"\n" for line in lines)
    with TensorBoard(folder / "tensorboard") as board:
        for line in lines:
            prefix = f"{line['method']}/{run_name(line['seed'], line['fold'])}"
            for name, value in line.items():
                if name not in ("method", "head", "seed", "fold", "epoch"):
                    board.add_scalar(f"{prefix}/{name}", value, line["epoch"])
