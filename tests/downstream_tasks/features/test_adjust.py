"""Confounds and sites: effects are estimated on training people, and gone from everyone."""

import dataclasses
import sys

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from neuroHarmonize import harmonizationLearn

from downstream_tasks.cohort.confounds import confound_table, remove_linear, without_confounds
from downstream_tasks.cohort.problem import Problem, make_target
from downstream_tasks.cohort.splits import Split, draw_split
from downstream_tasks.config import DataConfig, HeadsConfig
from downstream_tasks.features.adjust import FeatureAdjustment, combat
from downstream_tasks.heads.estimators import fit_head
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import make_cohort

N = 120


def study(seed=0, y=None, classes=(), runs=1):
    """People with age, site and motion; the site decides the level of half of the features."""
    rng = np.random.default_rng(seed)
    columns = {
        "age": list(rng.uniform(20, 80, N)),
        "site": [("A", "B", "C")[i % 3] for i in range(N)],
        "mean_fd": list(rng.gamma(2, 0.1, N)),
    }
    age = np.array(columns["age"])
    cohort = make_cohort(
        age + rng.normal(size=N) if y is None else y(columns, rng), classes=classes, runs=runs,
        columns=columns,
    )  # fmt: skip
    split = draw_split(cohort, (0.6, 0.2, 0.2), seed)
    problem = Problem(cohort, split, make_target(cohort, split), "mse", seed)
    x = rng.normal(size=(N * runs, 10)).astype(np.float32)
    x[:, :5] += np.repeat((age - 50) / 15, runs)[:, None]
    return cohort, problem, x


def removed(data, cohort, problem, x):
    return FeatureAdjustment(data, cohort)(x, problem, remove=True)


def test_effects_are_those_of_an_ordinary_regression_on_training_people():
    cohort, problem, x = study()
    data = DataConfig(confounds=("age", "site", "mean_fd"))
    train = problem.split.train
    design = np.column_stack(
        [cohort.table["age"], cohort.table["site"] == "B", cohort.table["site"] == "C",
         cohort.table["mean_fd"]]
    ).astype(float)  # fmt: skip
    fits = [sm.OLS(column[train], sm.add_constant(design[train])).fit() for column in x.T]
    effects = np.array([fit.params[1:] for fit in fits]).T
    expected = x - (design - design[train].mean(axis=0)) @ effects
    np.testing.assert_allclose(removed(data, cohort, problem, x), expected, atol=1e-4)


def test_numbers_of_sites_are_categories_where_it_is_said():
    cohort = make_cohort(np.arange(6.0), columns={"site": [1, 2, 3, 1, 2, 3]})
    assert confound_table(cohort, ["site"]).shape == (6, 1)
    categories = confound_table(cohort, ["C(site)"])
    np.testing.assert_array_equal(categories[:3], [[0, 0], [1, 0], [0, 1]])


def test_what_depends_on_the_confound_only_is_at_chance_without_it():
    """Age decides the class, and the features know nothing but age."""
    scores = {False: [], True: []}
    for seed in range(4):
        cohort, problem, x = study(
            seed, lambda columns, _: (np.array(columns["age"]) > 50).astype(int), ("young", "old")
        )
        problem = dataclasses.replace(problem, metric="balanced_accuracy")
        adjust = FeatureAdjustment(DataConfig(confounds=("age",)), cohort)
        for remove in scores:
            result = fit_head("logistic", adjust(x, problem, remove), problem, HeadsConfig())
            test = problem.split.test
            hit = result.scores[test].argmax(axis=1) == cohort.y[test]
            scores[remove].append(hit.mean())
    assert np.mean(scores[False]) > 0.85
    assert abs(np.mean(scores[True]) - 0.5) < 0.12


def test_a_target_less_its_confounds_is_what_is_learnt_and_scored():
    cohort, problem, x = study(runs=2)
    alone = without_confounds(problem, ["age"], True)
    everything = np.r_[problem.split.train, problem.split.valid]
    assert abs(np.corrcoef(alone.cohort.y[everything], x[everything, 0])[0, 1]) < 0.3
    fit = sm.OLS(
        cohort.y[problem.split.train],
        sm.add_constant(cohort.table["age"].to_numpy()[problem.split.train]),
    ).fit()
    test = problem.split.test
    age = cohort.table["age"].to_numpy()
    mean_age = age[problem.split.train].mean()
    expected = cohort.y[test] - fit.params[1] * (age[test] - mean_age)
    np.testing.assert_allclose(alone.cohort.y[test], expected, atol=1e-6)
    before = fit_head("ridge", x, problem, HeadsConfig())
    after = fit_head("ridge", x, alone, HeadsConfig())
    assert np.corrcoef(before.scores[test], problem.target.y[test])[0, 1] > 0.8
    assert np.corrcoef(after.scores[test], alone.target.y[test])[0, 1] < 0.4


@pytest.mark.parametrize(
    "data",
    [DataConfig(confounds=("age", "site")), DataConfig(harmonize="site")],
    ids=["confounds", "harmonize"],
)
def test_nothing_is_learnt_from_test_people(data):
    cohort, problem, x = study()
    train, test = problem.split.train, problem.split.test
    before = FeatureAdjustment(data, cohort)(x, problem, remove=bool(data.confounds))
    table = cohort.table.copy()
    table.loc[test, "age"] = 500.0
    table.loc[test, "site"] = "A"
    changed = x.copy()
    changed[test] *= 100
    other = dataclasses.replace(cohort, table=table)
    after = FeatureAdjustment(data, other)(changed, problem, remove=bool(data.confounds))
    np.testing.assert_array_equal(after[train], before[train])
    assert not np.allclose(after[test], before[test])


# --- ComBat -----------------------------------------------------------------------------------


def sites_study(seed=0, n=90, n_features=12):
    rng = np.random.default_rng(seed)
    sites = np.array(["A", "B", "C"])[np.arange(n) % 3]
    x = rng.normal(size=(n, n_features))
    x[sites == "B"] = 3 + 2 * x[sites == "B"]
    x[sites == "C"] -= 1
    return x.astype(np.float32), sites


def test_combat_on_training_people_is_that_of_the_package():
    x, sites = sites_study()
    train = np.arange(60)
    ours = combat(x, sites, train, np.empty((90, 0)))
    _, theirs = harmonizationLearn(
        x[train].astype(np.float64), pd.DataFrame({"SITE": sites[train]}), seed=0
    )
    np.testing.assert_allclose(ours[train], theirs, atol=1e-5)
    held_out = np.arange(60, 90)
    means = [ours[held_out][sites[held_out] == site].mean() for site in "ABC"]
    spreads = [ours[held_out][sites[held_out] == site].std() for site in "ABC"]
    assert np.ptp(means) < 0.5  # before: 4
    assert max(spreads) / min(spreads) < 1.3  # before: 2


def test_combat_does_not_depend_on_which_sites_are_tested():
    """The package's own function is wrong where a site of training is absent from its data."""
    x, sites = sites_study()
    train = np.arange(60)
    everyone = combat(x, sites, train, np.empty((90, 0)))
    one_site = np.r_[train, 60 + np.flatnonzero(sites[60:] == "C")]
    alone = combat(x[one_site], sites[one_site], train, np.empty((len(one_site), 0)))
    np.testing.assert_allclose(alone, everyone[one_site], atol=1e-5)


def test_combat_keeps_what_is_to_be_kept_and_constant_features():
    x, sites = sites_study()
    age = np.where(sites == "B", 60.0, 30.0) + np.arange(90) % 7
    x[:, 0] = 0.2 * age + 0.1 * np.random.default_rng(1).normal(size=90)
    x[:, 1] = 7.0
    train = np.arange(60)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    kept = combat(x, sites, train, age[:, None])
    lost = combat(x, sites, train, np.empty((90, 0)))
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert np.corrcoef(kept[:, 0], age)[0, 1] > 0.95 > np.corrcoef(lost[:, 0], age)[0, 1]
    np.testing.assert_array_equal(kept[:, 1], 7.0)


# --- refusals ---------------------------------------------------------------------------------


def test_a_site_without_training_people_is_refused():
    cohort, problem, _ = study()
    sites = cohort.table["site"]
    train = problem.split.train[sites.to_numpy()[problem.split.train] != "C"]
    without = dataclasses.replace(
        problem, split=Split(train, problem.split.valid, problem.split.test)
    )
    with pytest.raises(UserError, match=r"fewer than 3 training runs of site C.*split\.source=cv"):
        FeatureAdjustment(DataConfig(harmonize="site"), cohort).check(without)
    with pytest.raises(UserError, match=r"no training person of seed0 has site C"):
        FeatureAdjustment(DataConfig(confounds=("site",)), cohort).check(without)


def test_confounds_must_be_there_and_not_too_many():
    cohort, problem, _ = study()
    cohort.table.loc[3, "age"] = np.nan
    with pytest.raises(UserError, match=r"data\.confounds: 1 people have no value of 'age'.*003"):
        FeatureAdjustment(DataConfig(confounds=("age",)), cohort).check(problem)
    with pytest.raises(UserError, match=r"no column 'sites'.*Did you mean 'site'"):
        FeatureAdjustment(DataConfig(confounds=("sites",)), cohort).check(problem)
    with pytest.raises(UserError, match="3 training examples are too few to remove 2 confounds"):
        remove_linear(np.zeros(3), np.ones((3, 2)), np.arange(3))


def test_the_package_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "neuroHarmonize", None)
    x, sites = sites_study()
    with pytest.raises(UserError, match=r"pip install neuroHarmonize==2\.4\.5 neuroCombat"):
        combat(x, sites, np.arange(60), np.empty((90, 0)))
