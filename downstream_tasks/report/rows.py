"""The rows of the table: scores, intervals, comparison with functional connectivity."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.problem import Problem
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.heads.result import HeadResult, Row
from downstream_tasks.scoring.bootstrap import ScoredRun, bootstrap_metrics, interval
from downstream_tasks.scoring.metrics import (
    classification_metrics,
    confusion_matrix,
    corrected_resampled_ttest,
    mean_sd,
    regression_metrics,
)

FC_NAME = "FC"


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
