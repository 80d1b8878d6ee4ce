"""The permutation test: which labels change places, and how often it finds what is not there."""

import dataclasses
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.problem import Problem, make_target
from downstream_tasks.cohort.splits import Split
from downstream_tasks.config import HeadsConfig
from downstream_tasks.heads.estimators import fit_head
from downstream_tasks.heads.result import HeadResult
from downstream_tasks.studies.methods import Method, mean_test_score
from downstream_tasks.studies.permutation import (
    permutation_test,
    permute_labels,
    summarise_null,
)
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import make_cohort, separable


def pose(cohort: Cohort, metric: str = "mse") -> list[Problem]:
    """Two thirds train, one third test; families of two are not cut."""
    n = len(cohort.y)
    split = Split(np.arange(n * 2 // 3), np.array([], dtype=np.int64), np.arange(n * 2 // 3, n))
    return [Problem(cohort, split, make_target(cohort, split), metric, 0)]


def best_feature(x: np.ndarray) -> Method:
    """Least squares on the one feature that the training people pick: selection is inside."""

    def fit(problem: Problem) -> HeadResult:
        train, y = problem.split.train, problem.target.y
        z = x - x[train].mean(axis=0)
        slope = (z[train] * y[train, None]).sum(axis=0) / (z[train] ** 2).sum(axis=0)
        error = ((y[train, None] - slope * z[train]) ** 2).sum(axis=0)
        k = error.argmin()
        return HeadResult(slope[k] * z[:, k] + y[train].mean(), {})

    return Method("features", "least squares", fit)


def p_of(x: np.ndarray, cohort: Cohort, n_permutations: int, seed: int) -> float:
    method = best_feature(x)
    problems = pose(cohort)
    observed = mean_test_score(problems, [method.fit(p) for p in problems])
    (test,) = permutation_test([method], [observed], cohort, pose, n_permutations, seed)
    return test.p


# --- which labels change places -------------------------------------------------------------------


def test_families_change_places_with_families_of_their_size():
    families = ["a", "a", "b", "c", "c", "d", "e", "e", "e"]
    cohort = make_cohort(np.arange(9.0), families=families)
    rng = np.random.default_rng(0)
    seen = [permute_labels(cohort, rng).y for _ in range(1200)]
    for y in seen:
        assert sorted(y) == list(range(9))
        assert {*y[:2]} in ({0, 1}, {3, 4})  # a whole family of two, in either order
        assert {*y[3:5]} in ({0, 1}, {3, 4})
        assert {y[2], y[5]} == {2, 5}
        assert {*y[6:]} == {6, 7, 8}
    counts = Counter(tuple(y) for y in seen)
    assert len(counts) == 96  # 2! x (2!)^2 of the pairs, 2! of those alone, 3! of the three
    assert max(counts.values()) < 30


def test_all_runs_of_a_person_get_one_label():
    cohort = make_cohort(np.arange(6.0), runs=3)
    y = permute_labels(cohort, np.random.default_rng(0)).y.reshape(6, 3)
    assert (y == y[:, :1]).all()
    assert sorted(y[:, 0]) == list(range(6))
    assert (y[:, 0] != np.arange(6)).any()


def of_events(y: np.ndarray, events: int) -> Cohort:
    """``events`` scored events of each person."""
    cohort = make_cohort(np.zeros(len(y) // events), runs=events, classes=("a", "b"))
    units = cohort.examples[["participant_id"]].assign(onset=np.arange(len(y)))
    examples = cohort.examples.assign(unit=np.arange(len(y)))
    return dataclasses.replace(cohort, examples=examples, y=y, units=units)


def test_labels_that_differ_within_people_stay_within_them():
    y = np.array([0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1, 0])
    cohort = of_events(y, 4)
    rng = np.random.default_rng(0)
    seen = np.array([permute_labels(cohort, rng).y for _ in range(200)]).reshape(200, 3, 4)
    assert (seen.sum(axis=2) == [1, 2, 3]).all()
    assert len({tuple(row) for row in seen[:, 1]}) == 6


def test_labels_of_events_that_are_the_persons_move_with_the_person():
    cohort = of_events(np.repeat([0, 1, 0, 1], 3), 3)
    rng = np.random.default_rng(0)
    seen = np.array([permute_labels(cohort, rng).y for _ in range(50)]).reshape(50, 4, 3)
    assert (seen == seen[..., :1]).all()
    assert len({tuple(row) for row in seen[..., 0]}) == 6


def test_labels_that_cannot_move_are_said():
    families = ["a", "b", "b", "c", "c", "c"]
    cohort = make_cohort(np.array([0, 1, 1, 0, 0, 0]), families=families, classes=("x", "y"))
    with pytest.raises(UserError, match="cannot change places"):
        permutation_test([], [], cohort, pose, 10)


# --- p --------------------------------------------------------------------------------------------


def test_p_counts_ties_and_itself():
    null = np.array([0.5, 0.6, 0.7, 0.7, 0.8])
    test = summarise_null("x", "accuracy", 0.7, null, 5, 0)
    assert test.p == (1 + 3) / 6
    assert test.null_mean == pytest.approx(0.66)
    assert summarise_null("x", "mse", 0.6, null, 5, 0).p == (1 + 2) / 6
    assert summarise_null("x", "accuracy", 0.9, null, 5, 0).p == 1 / 6


def test_what_is_undefined_is_the_worst():
    test = summarise_null("x", "pearson", 0.1, np.array([-np.inf, 0.0, 0.2]), 3, 0)
    assert test.p == (1 + 1) / 4
    assert test.null_mean == pytest.approx(0.1)
    assert summarise_null("x", "pearson", -np.inf, np.array([-np.inf, 0.0]), 2, 0).p == 1


def test_no_effect_gives_every_p_alike():
    ps = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(24, 4)), rng.normal(size=24)
        ps.append(p_of(x, make_cohort(y), 19, seed))
    assert stats.kstest(np.array(ps) - 0.025, "uniform").pvalue > 0.01
    assert np.mean(np.array(ps) <= 0.05) < 0.1


@pytest.mark.parametrize(("in_families", "most"), [(True, 0.1), (False, 1.0)])
def test_families_that_are_alike_in_both_are_no_effect(in_families, most):
    """Brains and labels alike within families, and unrelated: people are not exchangeable."""
    ps = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        x = np.repeat(rng.normal(size=(9, 1)), 4, axis=0) + 0.1 * rng.normal(size=(36, 1))
        y = np.repeat(rng.normal(size=9), 4) + 0.1 * rng.normal(size=36)
        families = [f"f{i // 4}" for i in range(36)] if in_families else None
        ps.append(p_of(x, make_cohort(y, families=families), 19, seed))
    found = np.mean(np.array(ps) <= 0.05)
    assert found < most
    if not in_families:
        assert found > 0.1


def test_a_strong_effect_is_the_best_of_all_and_the_seed_decides():
    x, y = separable(60, 5, effect=4.0, seed=0)
    cohort = make_cohort(y, classes=("F", "M"))
    heads = HeadsConfig(folds=3, C=(0.01, 1.0))
    method = Method("x", "logistic", lambda problem: fit_head("logistic", x, problem, heads))

    def pose_classes(cohort):
        return pose(cohort, "balanced_accuracy")

    problems = pose_classes(cohort)
    observed = mean_test_score(problems, [method.fit(p) for p in problems])
    arguments = [method], [observed], cohort, pose_classes, 39
    (test,) = permutation_test(*arguments, seed=1)
    assert test.p == 1 / 40
    assert test.observed == observed
    assert test.null_interval[0] < 0.5 < test.null_interval[1] < observed
    assert test.n_arrangements == 39
    assert [test] == permutation_test(*arguments, seed=1)
    assert [test] != permutation_test(*arguments, seed=2)


def test_labels_that_nothing_can_be_fitted_to_are_drawn_again():
    """One of four people is in class y: in half of the arrangements a test person is."""
    cohort = make_cohort(np.array([1, 0, 0, 0, 0, 0]), classes=("x", "y"))

    def fit(problem):
        return HeadResult(np.tile([0.5, 0.5], (6, 1)), {})

    (test,) = permutation_test(
        [Method("x", "none", fit)], [0.5], cohort, lambda c: pose(c, "accuracy"), 30
    )
    assert test.n_redrawn > 0
    assert test.n_arrangements == 4  # the training people it can be


def test_the_pipeline_is_fitted_to_permuted_labels_of_training_people():
    """Every fit sees labels in other places, and a target of its own mean and SD."""
    rng = np.random.default_rng(0)
    cohort = make_cohort(rng.normal(size=30))
    seen = []

    def fit(problem):
        seen.append(problem)
        return HeadResult(np.zeros(30), {})

    permutation_test([Method("x", "none", fit)], [1.0], cohort, pose, 5)
    assert len(seen) == 5
    for problem in seen:
        assert not np.array_equal(problem.cohort.y, cohort.y)
        np.testing.assert_allclose(sorted(problem.cohort.y), sorted(cohort.y))
        train = problem.target.y[problem.split.train]
        assert train.mean() == pytest.approx(0)
        assert train.std() == pytest.approx(1)
    assert pd.Series([problem.target.mean for problem in seen]).nunique() == 5
