"""The rows of the table: scores, intervals, comparison with functional connectivity."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.problem import Problem
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.features.registry import Kind
from downstream_tasks.heads.result import FittedMethod, HeadResult
from downstream_tasks.report.results import (
    FC_NAME,
    Comparison,
    MethodResult,
    RunResult,
    SplitSizes,
)
from downstream_tasks.scoring.bootstrap import ScoredRun, bootstrap_metrics, interval
from downstream_tasks.scoring.metrics import (
    classification_metrics,
    confusion_matrix,
    corrected_resampled_ttest,
    mean_sd,
    regression_metrics,
)

Scored = tuple[MethodResult, Mapping[str, np.ndarray]]  # a row and its bootstrap samples


def score_rows(
    cohort: Cohort,
    problems: Sequence[Problem],
    methods: Sequence[FittedMethod],
    config: DownstreamConfig,
) -> tuple[tuple[MethodResult, ...], tuple[Comparison, ...]]:
    """The rows (metrics per run, mean, SD, intervals over people) and their comparisons with FC."""
    scored = []
    for method in methods:
        runs = [_score(cohort, p, h) for p, h in zip(problems, method.results, strict=True)]
        samples = bootstrap_metrics(runs, config.evaluation.n_bootstrap)
        results = [
            _run_result(cohort, problem, run, result)
            for problem, run, result in zip(problems, runs, method.results, strict=True)
        ]
        row = method_result(
            method.name,
            method.head,
            method.kind,
            results,
            samples,
            representation=method.representation,
            notes=_notes(method.results),
            trained_parameters=method.results[0].trained_parameters,
        )
        scored.append((row, samples))
    sizes = split_sizes(cohort, problems) if config.split.resample else ()
    return tuple(row for row, _ in scored), compare_with_fc(scored, config.metric, sizes)


def method_result(
    name: str,
    head: str,
    kind: Kind,
    runs: Sequence[RunResult],
    samples: Mapping[str, np.ndarray],
    *,
    representation: str = "",
    notes: tuple[str, ...] = (),
    trained_parameters: int | None = None,
) -> MethodResult:
    """A row from its runs and the bootstrap samples of each metric."""
    mean, sd = mean_sd([run.metrics for run in runs])
    intervals = {metric: interval(values) for metric, values in samples.items()}
    return MethodResult(
        name,
        head,
        kind,
        mean,
        sd,
        intervals,
        tuple(runs),
        representation,
        notes,
        trained_parameters,
    )


def compare_with_fc(
    scored: Sequence[Scored], metric: str, resampled: Sequence[SplitSizes] = ()
) -> tuple[Comparison, ...]:
    """The paired difference in ``metric`` of every row from FC.

    The interval comes from resampling the same people for both. The corrected resampled t-test is
    for new splits per run, whose sizes are ``resampled``; on one split, runs differ by their seed
    only, and a test over seeds would say nothing about people.
    """
    reference = next(((row, s) for row, s in scored if row.name == FC_NAME), None)
    if reference is None:
        return ()
    comparisons = []
    for row, samples in scored:
        if row is reference[0]:
            continue
        here, there = (
            np.array([run.metrics[metric] for run in each.runs]) for each in (row, reference[0])
        )
        p, test = np.nan, ""
        if resampled:
            _, p = corrected_resampled_ttest(
                here - there,
                n_train=np.mean([size.train for size in resampled]),
                n_test=np.mean([size.test for size in resampled]),
            )
            test = "corrected resampled t-test"
        comparisons.append(
            Comparison(
                method=row.label,
                reference=reference[0].label,
                metric=metric,
                difference=float((here - there).mean()),
                interval=interval(samples[metric] - reference[1][metric]),
                p=p,
                test=test,
            )
        )
    return tuple(comparisons)


def split_sizes(cohort: Cohort, problems: Sequence[Problem]) -> tuple[SplitSizes, ...]:
    """People in each part of every run."""
    return tuple(
        SplitSizes(
            problem.name,
            **{part: len(set(cohort.people[m])) for part, m in problem.split.parts().items()},
        )
        for problem in problems
    )


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
    people = cohort.units["participant_id"].to_numpy(str)[units]
    return ScoredRun(target.normalise(y), scores, people, target.scale)


def _metrics(cohort: Cohort, run: ScoredRun) -> dict[str, float]:
    if cohort.is_classification:
        return classification_metrics(run.y, run.scores)
    return regression_metrics(run.y, run.scores, run.scale)
