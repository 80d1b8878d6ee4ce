"""Learning curves: nested, stratified subsets of the training people, the test people unchanged."""

import numpy as np
import pandas as pd
import pytest

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.problem import Problem, make_target
from downstream_tasks.cohort.splits import draw_split
from downstream_tasks.config import HeadsConfig
from downstream_tasks.heads.estimators import fit_head
from downstream_tasks.heads.result import HeadResult
from downstream_tasks.studies.learning_curve import (
    learning_curve,
    nested_subsets,
    summarise_curve,
)
from downstream_tasks.studies.methods import Method
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import make_cohort, separable


def problem_of(cohort: Cohort, metric: str = "balanced_accuracy", seed: int = 0) -> Problem:
    split = draw_split(cohort, (0.6, 0.2, 0.2), seed)
    return Problem(cohort, split, make_target(cohort, split), metric, seed)


@pytest.fixture
def families() -> Problem:
    """Fifty families of two, a third of the people in class b, two runs each."""
    y = np.repeat((np.arange(50) % 3 == 0).astype(int), 2)
    names = [f"f{i // 2}" for i in range(100)]
    return problem_of(make_cohort(y, classes=("a", "b"), runs=2, families=names))


def test_subsets_are_nested_whole_families_with_all_their_runs(families):
    subsets = nested_subsets(families, [10, 0.5, 25, 1.0], draw=0)
    assert list(subsets) == [10, 25, 0.5, 1.0]
    cohort, inner = families.cohort, set()
    for size, n in ((10, 10), (25, 26), (0.5, 30), (1.0, 60)):
        train = subsets[size]
        people = set(cohort.people[train])
        assert len(people) == n  # of 60; families of two reach 25 with 26
        assert len(train) == 2 * n
        assert inner <= people
        assert cohort.examples["group"].to_numpy()[train].tolist().count("f0") in (0, 4)
        inner = people
    np.testing.assert_array_equal(subsets[1.0], families.split.train)


def test_subsets_are_stratified_and_differ_between_draws(families):
    draws = [nested_subsets(families, [12, 30], draw) for draw in range(5)]
    y = families.cohort.y
    for subsets in draws:
        assert y[subsets[30]].mean() == pytest.approx(1 / 3, abs=0.08)
        assert y[subsets[12]].mean() == pytest.approx(1 / 3, abs=0.01)
    assert len({tuple(subsets[12]) for subsets in draws}) == 5
    again = nested_subsets(families, [12], 3)
    np.testing.assert_array_equal(again[12], draws[3][12])


def test_errors_of_few_and_many_people_are_in_one_unit():
    """Predictions that are off by the same number of years have the same error at every size."""
    problem = problem_of(make_cohort(np.random.default_rng(0).normal(60, 9, 100)), "mse")

    def off_by_three_years(fewer: Problem) -> HeadResult:
        return HeadResult(fewer.target.normalise(fewer.cohort.y + 3), {})

    table = learning_curve(
        [Method("FC", "ridge", off_by_three_years)], [problem], [5, 1.0], 4, make_target
    )
    np.testing.assert_allclose(table["mse"], (3 / problem.target.scale) ** 2)


def test_few_people_hold_two_of_a_rare_class():
    y = np.r_[np.zeros(90, int), np.ones(10, int)]
    problem = problem_of(make_cohort(y, classes=("a", "b")))
    for draw in range(10):
        train = nested_subsets(problem, [5], draw)[5]
        assert np.bincount(y[train]).tolist() == [3, 2]


def test_a_continuous_target_is_covered():
    y = np.arange(100.0)
    problem = problem_of(make_cohort(y), "mse")
    spread = [y[nested_subsets(problem, [5], draw)[5]] for draw in range(20)]
    assert min(np.ptp(values) for values in spread) > 50  # one of each fifth


@pytest.mark.parametrize("size", [3, 61, 0.01])
def test_sizes_that_cannot_be_are_refused(families, size):
    with pytest.raises(UserError, match=r"train_sizes: .* of 60 training people; allowed: 4 to 60"):
        nested_subsets(families, [size], 0)


def test_more_people_help_and_the_test_people_stay():
    x, y = separable(200, 30, effect=2.0, seed=0)
    problem = problem_of(make_cohort(y, classes=("a", "b")), "auroc")
    heads, seen = HeadsConfig(folds=3, C=(0.01, 1.0)), []

    def fit(fewer):
        seen.append(fewer)
        return fit_head("logistic", x, fewer, heads)

    method = Method("x", "logistic", fit)
    table = learning_curve([method], [problem], [6, 30, 1.0], 6, make_target)
    assert len(table) == len(seen) == 6 + 6 + 1  # everyone is fitted once
    for fewer in seen:
        np.testing.assert_array_equal(fewer.split.test, problem.split.test)
        np.testing.assert_array_equal(fewer.split.valid, problem.split.valid)
    few, some, everyone = summarise_curve(table, "auroc")
    assert (few.size, some.size, everyone.size) == (6, 30, 1)
    assert (few.n_people, everyone.n_people) == (6, 120)
    assert few.mean < some.mean < everyone.mean
    assert few.interval[0] <= few.mean <= few.interval[1]
    assert few.sd > some.sd
    direct = fit_head("logistic", x, problem, heads).scores
    np.testing.assert_allclose(direct, fit_head("logistic", x, seen[2], heads).scores)


def test_targets_are_normalised_on_the_people_of_the_subset():
    y = np.random.default_rng(0).normal(50, 10, size=80)
    problem = problem_of(make_cohort(y), "mse")
    seen = []

    def fit(fewer):
        seen.append(fewer)
        return fit_head("ridge", y[:, None], fewer, HeadsConfig(alpha=(1.0,)))

    table = learning_curve([Method("x", "ridge", fit)], [problem], [10], 2, make_target)
    for fewer in seen:
        assert fewer.target.mean == pytest.approx(y[fewer.split.train].mean())
    assert (table["mse"] < 0.2).all()


def test_an_undefined_score_is_no_number():
    table = pd.DataFrame(
        {"method": "x", "head": "y", "size": [5, 5], "people": 5, "r": [0.2, -np.inf]}
    )
    (point,) = summarise_curve(table, "r")
    assert np.isnan([point.mean, point.sd, *point.interval]).all()
