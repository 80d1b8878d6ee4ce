"""Permutation test of the whole pipeline: is the score more than labels without meaning give?

The labels change places, the splits are drawn again where they are drawn, and everything that looks
at labels - inner selection, weights, the target's mean and SD - is fitted again. The features are
those of the evaluation. The score of the real labels is one of ``n + 1`` that are equally likely to
be the best if labels and brains have nothing to do with each other, so
``p = (1 + number at least as good) / (1 + n)``, which is never 0 (Phipson and Smyth, 2010).
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pandas as pd

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.problem import Problem
from downstream_tasks.report.results import PermutationTest
from downstream_tasks.scoring.metrics import direction
from downstream_tasks.studies.methods import Method, mean_test_score, without_repeated_messages
from src.utils.errors import UserError
from src.utils.progress import progress_bar

logger = logging.getLogger(__name__)

_TRIES = 100  # for labels that no pipeline can be fitted to
_ROUNDING = 1e-9  # scores that differ by less are equal: sums in another order

Pose = Callable[[Cohort], Sequence[Problem]]


def permutation_test(
    methods: Sequence[Method],
    observed: Sequence[float],
    cohort: Cohort,
    pose: Pose,
    n_permutations: int,
    seed: int = 0,
) -> list[PermutationTest]:
    """Fit ``methods`` to ``n_permutations`` arrangements of the labels; one test for each.

    All methods see the same arrangements. The n-th one depends on ``seed`` and n only.

    Args:
        observed: scores with the real labels, of :func:`methods.mean_test_score`.
        pose: the problems (one per run) of a cohort with other labels.

    Raises:
        UserError: if the labels cannot change places.
    """
    _check_movable(cohort, seed)
    real = pose(cohort)
    metric, n_fits = real[0].metric, n_permutations * len(real) * len(methods)
    logger.info(
        "permutation test: %d permutations x %d runs x %d rows = %d fits, features as they are",
        n_permutations,
        len(real),
        len(methods),
        n_fits,
    )
    null = np.empty((n_permutations, len(methods)))
    arrangements, redrawn, began = set(), 0, time.monotonic()
    for n in progress_bar(range(n_permutations), desc="permutations", unit="permutation"):
        rng = np.random.default_rng([seed, n])
        for attempt in range(_TRIES):
            permuted = permute_labels(cohort, rng)
            try:
                with without_repeated_messages():
                    problems = pose(permuted)
                    null[n] = [
                        mean_test_score(problems, [method.fit(problem) for problem in problems])
                        for method in methods
                    ]
                break
            except UserError:  # a training set or inner fold without one of the classes
                redrawn += 1
                if attempt == _TRIES - 1:
                    raise
        arrangements.add(permuted.y.tobytes())
        if n == 0:
            total = timedelta(seconds=round((time.monotonic() - began) * n_permutations))
            logger.info("permutation test: about %s by the time of the first permutation", total)
    return [
        summarise_null(method.label, metric, value, null[:, i], len(arrangements), redrawn)
        for i, (method, value) in enumerate(zip(methods, observed, strict=True))
    ]


def summarise_null(
    method: str,
    metric: str,
    observed: float,
    null: np.ndarray,
    n_arrangements: int,
    n_redrawn: int,
) -> PermutationTest:
    """p, mean and central 95 % of the scores ``null`` of permuted labels.

    An undefined score comes as the worst one (infinite); it counts in p and not in the others.
    """
    sign = direction(metric)
    as_good = int((sign * null >= sign * observed - _ROUNDING).sum())
    defined = null[np.isfinite(null)]
    low, high = np.quantile(defined, [0.025, 0.975]) if len(defined) else (np.nan, np.nan)
    return PermutationTest(
        method,
        metric,
        observed if np.isfinite(observed) else np.nan,
        (1 + as_good) / (1 + len(null)),
        len(null),
        float(defined.mean()) if len(defined) else np.nan,
        (float(low), float(high)),
        n_arrangements,
        n_redrawn,
    )


def permute_labels(cohort: Cohort, rng: np.random.Generator) -> Cohort:
    """The cohort with its labels in other places, within the blocks that are exchangeable.

    Labels that differ within people (of their events or runs) change places within each person.
    Otherwise whole families change places with families of as many people, whose members are then
    taken in a random order: what is alike within families stays so. A family of a size of its own
    keeps its labels, and only its members change places. Where ``data.disjoint`` makes a site one
    group, labels move within sites.
    """
    unit = cohort.examples["unit"].to_numpy()
    units, first = np.unique(unit, return_index=True)
    y, people = cohort.y[first], pd.factorize(cohort.people[first])[0]
    if _vary_within(y, people):
        source = _shuffled_within(people, rng)
    else:
        source = _source_of_people(cohort, first, people, rng)
    return replace(cohort, y=y[source][np.searchsorted(units, unit)])


def _vary_within(y: np.ndarray, people: np.ndarray) -> bool:
    return bool((pd.Series(y).groupby(people).nunique() > 1).any())


def _shuffled_within(block: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Position from which each position takes its label: a random one of its block."""
    source = np.empty(len(block), dtype=np.int64)
    source[np.argsort(block, kind="stable")] = np.lexsort((rng.random(len(block)), block))
    return source


def _source_of_people(
    cohort: Cohort, first: np.ndarray, people: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Unit from which each unit takes its label, if all units of a person have the same one."""
    _, unit_of_person = np.unique(people, return_index=True)
    group = pd.factorize(cohort.examples["group"].to_numpy()[first[unit_of_person]])[0]
    size = np.bincount(group)[group]
    taken_from = np.arange(len(group))
    for people_per_group in np.unique(size):
        members = np.flatnonzero(size == people_per_group)
        families = members[np.argsort(group[members], kind="stable")].reshape(-1, people_per_group)
        taken_from[families] = rng.permuted(rng.permutation(families), axis=1)
    return unit_of_person[taken_from][people]


def _check_movable(cohort: Cohort, seed: int) -> None:
    rng = np.random.default_rng(seed)
    if all((permute_labels(cohort, rng).y == cohort.y).all() for _ in range(_TRIES)):
        raise UserError(
            "evaluation.n_permutations: the labels cannot change places: every family (or other "
            "group of data.disjoint) has a size of its own and one label. Test the model against "
            "FC by its paired interval instead: evaluation.n_permutations=0."
        )
