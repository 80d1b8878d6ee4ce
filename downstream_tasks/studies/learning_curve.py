"""Learning curve: the score over the number of labelled training people, few-shot included.

Subsets of the training people are fitted through the same heads and scored on the same test people.
The subsets of one draw are nested: more people are the same ones and others. The validation people
stay as they are; heads that pick their setting on them have seen these labels too.
"""

import csv
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.problem import Problem, Target
from downstream_tasks.cohort.splits import Split, group_table
from downstream_tasks.report.results import CurvePoint
from downstream_tasks.studies.methods import Method, score_on_test, without_repeated_messages
from src.utils.errors import UserError
from src.utils.files import replacing
from src.utils.progress import progress_bar

logger = logging.getLogger(__name__)

TABLE_FILE = "learning_curve.tsv"
_STRATA = 5  # of a continuous target: about so many quantile bins
_PER_CLASS = 2  # inner cross-validation needs two groups of each class
_FEWEST = 4  # people, of a continuous target

MakeTarget = Callable[[Cohort, Split], Target]


def learning_curve(
    methods: Sequence[Method],
    problems: Sequence[Problem],
    sizes: Sequence[float],
    draws: int,
    make_target: MakeTarget,
) -> pd.DataFrame:
    """Score ``methods`` with ``draws`` nested subsets of the training people of every problem.

    Returns one line per method, problem, draw and size: ``method``, ``head``, ``run``, ``draw``,
    ``size``, ``people``, and the score under the name of the metric. All methods get the same
    people. Everyone is fitted once, whatever the number of draws.

    Args:
        make_target: the target with the mean and SD of the training people of a split.

    Raises:
        UserError: on a size beyond the training people, or too small to be fitted.
    """
    plans = [
        (problem, run, draw, size, train)
        for run, problem in enumerate(problems)
        for draw in range(draws)
        for size, train in nested_subsets(problem, sizes, draw).items()
        if draw == 0 or len(train) < len(problem.split.train)
    ]
    logger.info(
        "learning curve: %d training sets x %d rows = %d fits, features as they are",
        len(plans),
        len(methods),
        len(plans) * len(methods),
    )
    lines = []
    for problem, run, draw, size, train in progress_bar(plans, desc="learning curve", unit="set"):
        split = replace(problem.split, train=train)
        fewer = replace(problem, split=split, target=make_target(problem.cohort, split))
        people = len(set(problem.cohort.people[train]))
        for method in methods:
            with without_repeated_messages():
                result = method.fit(fewer)
            line = {"method": method.name, "head": method.head, "run": run, "draw": draw}
            scores = in_unit_of(problem.target, fewer.target, result.scores)
            score = score_on_test(problem, replace(result, scores=scores))
            line |= {"size": size, "people": people, problem.metric: score}
            lines.append(line)
    return pd.DataFrame(lines)


def in_unit_of(target: Target, own: Target, scores: np.ndarray) -> np.ndarray:
    """Predictions z-scored on few people, ``own``, as ``target`` has them.

    The SD of few people is another one in every draw, and an error in it is no error to compare.
    """
    return scores if target.n_classes else target.normalise(scores * own.scale + own.mean)


def nested_subsets(problem: Problem, sizes: Sequence[float], draw: int) -> dict[float, np.ndarray]:
    """Training examples of each size, smaller sets within larger ones.

    A size is a number of people, or up to 1.0 a share of the training people. Families stay
    together, so that a set may hold some people more. Sets are stratified by class (after the first
    two families of each), or by quantiles of a continuous target.

    Raises:
        UserError: as :func:`learning_curve`.
    """
    cohort, train = problem.cohort, problem.split.train
    rng = np.random.default_rng([problem.seed, draw])
    order = _stratified_order(cohort, train, rng)
    names = cohort.examples["group"].to_numpy().astype(str)[train]
    place = {group: i for i, group in enumerate(order)}
    position = np.array([place[name] for name in names])
    people = pd.Series(cohort.people[train]).groupby(position).nunique().sort_index().cumsum()
    everyone = int(people.iloc[-1])
    wanted = {size: _number_of_people(size, everyone, cohort) for size in sizes}
    return {
        size: train[position <= np.searchsorted(people.to_numpy(), wanted[size])]
        for size in sorted(wanted, key=wanted.get)
    }


def summarise_curve(table: pd.DataFrame, metric: str) -> list[CurvePoint]:
    """Mean and spread over draws and runs; methods as in the table, each from few people to all."""
    points: dict[tuple[str, str], list[CurvePoint]] = {}
    for (name, head, size), part in table.groupby(["method", "head", "size"], sort=False):
        scores = part[metric].to_numpy()
        scores = np.where(np.isfinite(scores), scores, np.nan)  # undefined, such as r of a constant
        low, high = np.quantile(scores, [0.025, 0.975])
        sd = scores.std(ddof=1) if len(scores) > 1 else np.nan
        people = float(part["people"].mean())
        mean, spread = float(scores.mean()), (float(low), float(high))
        point = CurvePoint(name, head, float(size), people, len(part), mean, float(sd), spread)
        points.setdefault((name, head), []).append(point)
    return [p for curve in points.values() for p in sorted(curve, key=lambda p: p.n_people)]


def write_table(folder: Path, table: pd.DataFrame) -> None:
    """Write every score of the curve to ``folder``."""
    with replacing(folder / TABLE_FILE) as file:
        table.to_csv(
            file, sep="\t", index=False, na_rep="n/a", float_format="%.6g", quoting=csv.QUOTE_NONE
        )


def _number_of_people(size: float, everyone: int, cohort: Cohort) -> int:
    wanted = size if size > 1 else round(size * everyone)
    n_strata = 2 if cohort.survival else len(cohort.classes)
    fewest = _PER_CLASS * n_strata or _FEWEST
    if not fewest <= wanted <= everyone:
        raise UserError(
            f"evaluation.train_sizes: {size:g} is {wanted} of {everyone} training people; allowed: "
            f"{fewest} to {everyone} people, or shares of them up to 1.0."
        )
    return int(wanted)


def _stratified_order(cohort: Cohort, train: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Groups of ``train`` in a random order, every beginning of which has each stratum's share."""
    groups, strata = group_table(cohort, train, _STRATA)
    key = np.empty(len(groups))
    for stratum in np.unique(strata):
        members = rng.permutation(np.flatnonzero(strata == stratum))
        key[members] = (np.arange(len(members)) + rng.random()) / len(members)
        if cohort.is_classification or cohort.survival:
            key[members[:_PER_CLASS]] -= 1  # before all others
    return groups[np.argsort(key)]
