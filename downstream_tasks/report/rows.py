"""The rows of the table: scores, intervals, what qualifies them, comparisons."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.problem import Problem, study_design
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.features.registry import Kind
from downstream_tasks.heads.result import FittedMethod, HeadResult
from downstream_tasks.report.comparisons import compare_rows
from downstream_tasks.report.results import Comparison, MethodResult, RunResult, SplitSizes
from downstream_tasks.scoring.calibration import ReliabilityBin, reliability_curve
from downstream_tasks.scoring.intervals import Bounds, degenerate_notes, summarise
from downstream_tasks.scoring.metrics import (
    classification_metrics,
    confusion_matrix,
    mean_sd,
    regression_metrics,
    survival_metrics,
)
from downstream_tasks.scoring.weighted import ScoredRun


def score_rows(
    cohort: Cohort,
    problems: Sequence[Problem],
    methods: Sequence[FittedMethod],
    config: DownstreamConfig,
) -> tuple[tuple[MethodResult, ...], tuple[Comparison, ...]]:
    """The rows (metrics per run, mean, SD, intervals over people) and their comparisons."""
    design = study_design(problems)
    rows, runs_of = [], {}
    for method in methods:
        of_method = method.problems or problems
        runs = [_score(p.cohort, p, h) for p, h in zip(of_method, method.results, strict=True)]
        notes = _notes(method.results)
        if method.head != "none":  # that everyone gets the same is what a row without a head is for
            notes += degenerate_notes(runs, cohort.classes)
        row = method_result(
            method.name,
            method.head,
            method.kind,
            [
                _run_result(cohort, problem, run, result)
                for problem, run, result in zip(problems, runs, method.results, strict=True)
            ],
            summarise(runs, design),
            representation=method.representation,
            notes=notes,
            trained_parameters=method.results[0].n_trained,
            reliability=pooled_reliability(runs) if cohort.is_classification else (),
            other_target=method.problems is not None,
            confounds_removed=method.confounds_removed,
        )
        rows.append(row)
        runs_of[row.label] = runs
    comparisons = compare_rows(
        rows, runs_of, config.metric, design, n_exchanges=config.evaluation.n_exchanges
    )
    return tuple(rows), comparisons


def method_result(
    name: str,
    head: str,
    kind: Kind,
    runs: Sequence[RunResult],
    intervals: Mapping[str, Bounds],
    *,
    representation: str = "",
    notes: tuple[str, ...] = (),
    trained_parameters: int | None = None,
    reliability: tuple[ReliabilityBin, ...] = (),
    other_target: bool = False,
    confounds_removed: bool = False,
) -> MethodResult:
    """A row from its runs and the interval of each metric."""
    mean, sd = mean_sd([run.metrics for run in runs])
    return MethodResult(
        name,
        head,
        kind,
        mean,
        sd,
        dict(intervals),
        tuple(runs),
        representation,
        notes,
        trained_parameters,
        reliability,
        other_target,
        confounds_removed,
    )


def split_sizes(cohort: Cohort, problems: Sequence[Problem]) -> tuple[SplitSizes, ...]:
    """People in each part of every run."""
    return tuple(
        SplitSizes(
            problem.name,
            **{part: len(set(cohort.people[m])) for part, m in problem.split.parts().items()},
        )
        for problem in problems
    )


def pooled_reliability(runs: Sequence[ScoredRun]) -> tuple[ReliabilityBin, ...]:
    """The reliability curve of all runs together."""
    y = np.concatenate([run.y for run in runs])
    return tuple(reliability_curve(y, np.concatenate([run.scores for run in runs])))


def _run_result(cohort: Cohort, problem: Problem, run: ScoredRun, result: HeadResult) -> RunResult:
    confusion = None
    if cohort.is_classification:
        confusion = tuple(map(tuple, confusion_matrix(run.y, run.scores).tolist()))
    return RunResult(problem.name, _metrics(cohort, run), dict(result.chosen), confusion)


def _notes(results: Sequence[HeadResult]) -> tuple[str, ...]:
    """What qualifies the fits of one method, each once with the number of runs it is true of."""
    counts = Counter(note for result in results for note in result.notes)
    return tuple(
        note if n == len(results) else f"{note} ({n} of {len(results)} runs)"
        for note, n in counts.items()
    )


def _score(cohort: Cohort, problem: Problem, result: HeadResult) -> ScoredRun:
    test, target = problem.split.test, problem.target
    units, scores, y = cohort.unit_mean(result.scores[test], test)
    clusters = cohort.unit_groups[units]
    return ScoredRun(target.normalise(y), scores, clusters, target.scale, target.survival)


def _metrics(cohort: Cohort, run: ScoredRun) -> dict[str, float]:
    if cohort.is_classification:
        return classification_metrics(run.y, run.scores)
    if cohort.survival:
        return survival_metrics(run.y, run.scores)
    return regression_metrics(run.y, run.scores, run.scale)
