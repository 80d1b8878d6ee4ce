"""Cox regression with a ridge penalty, against scikit-survival, and as a head."""

import dataclasses

import numpy as np
import pytest
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import concordance_index_censored

from downstream_tasks.cohort.problem import Problem, make_target
from downstream_tasks.cohort.splits import draw_split, inner_folds
from downstream_tasks.config import HeadsConfig
from downstream_tasks.heads.cox import RidgeCox
from downstream_tasks.heads.estimators import fit_head
from downstream_tasks.heads.joint import fit_joint
from downstream_tasks.scoring.survival import signed_times
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import make_cohort


def simulated(n, n_features, effect=1.0, seed=0, censoring=1.0):
    """Features, of which the first carries risk, and signed times in tenths (many are tied)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, n_features)).astype(np.float32)
    time, lost = rng.exponential(np.exp(-effect * x[:, 0])), rng.exponential(1 / censoring, n)
    return x, signed_times(np.ceil(10 * np.minimum(time, lost)), time <= lost)


def problem_of(y, **keys):
    cohort = dataclasses.replace(make_cohort(y, **keys), survival=True)
    split = draw_split(cohort, (0.6, 0.2, 0.2), 0)
    return Problem(cohort, split, make_target(cohort, split), "c_index", 0)


@pytest.mark.parametrize(("n", "n_features"), [(80, 4), (60, 59)])
@pytest.mark.parametrize("alpha", [0.1, 10.0, 1000.0])
def test_coefficients_are_those_of_scikit_survival(n, n_features, alpha):
    x, y = simulated(n, n_features)
    survival = np.array(list(zip(y > 0, np.abs(y), strict=True)), [("e", bool), ("t", float)])
    theirs = CoxPHSurvivalAnalysis(alpha=alpha, n_iter=500, tol=1e-12).fit(x, survival)
    ours = RidgeCox(alpha=alpha).fit(x, y)
    assert ours.coef_ == pytest.approx(theirs.coef_, rel=1e-3, abs=1e-5)


def test_a_strong_penalty_shrinks_and_does_not_stop_at_nothing():
    x, y = simulated(50, 3)
    weak, strong = (RidgeCox(alpha=alpha).fit(x, y).coef_ for alpha in (1e7, 1e9))
    assert weak == pytest.approx(100 * strong, rel=1e-3)
    assert np.abs(strong).min() > 0


@pytest.mark.parametrize("n_features", [5, 400])
def test_a_feature_that_carries_risk_is_found(n_features):
    x, y = simulated(150, n_features, effect=2.0 if n_features > 100 else 1.0)
    problem = problem_of(y, runs=1)
    result = fit_head("cox", x, problem, HeadsConfig())
    test = problem.split.test
    c = concordance_index_censored(y[test] > 0, np.abs(y[test]), result.scores[test])[0]
    assert c > (0.7 if n_features == 5 else 0.55)
    assert result.chosen["alpha"] in HeadsConfig().cox_alpha
    assert result.linear.scores(x, 0) == pytest.approx(result.scores)


def test_no_effect_is_a_half():
    c = []
    for seed in range(8):
        x, y = simulated(120, 10, effect=0.0, seed=seed)
        problem = problem_of(y)
        result, test = fit_head("cox", x, problem, HeadsConfig(folds=3)), problem.split.test
        c.append(concordance_index_censored(y[test] > 0, np.abs(y[test]), result.scores[test])[0])
    assert abs(np.mean(c) - 0.5) < 0.1


def test_nothing_of_the_test_people_is_fitted():
    x, y = simulated(100, 60)
    problem = problem_of(y)
    train, test = problem.split.train, problem.split.test
    before = fit_head("cox", x, problem, HeadsConfig(folds=3))
    x_other, y_other = x.copy(), y.copy()
    x_other[test] += 100
    y_other[test] *= -3
    changed = dataclasses.replace(problem.cohort, y=y_other)
    other = dataclasses.replace(problem, cohort=changed, target=make_target(changed, problem.split))
    after = fit_head("cox", x_other, other, HeadsConfig(folds=3))
    assert after.scores[train] == pytest.approx(before.scores[train])
    assert after.chosen == before.chosen


def test_every_part_and_inner_fold_has_its_share_of_events():
    y = -np.arange(1.0, 101)
    y[::5] *= -1  # twenty of a hundred
    problem = problem_of(y)
    assert [int((y[m] > 0).sum()) for m in problem.split.parts().values()] == [12, 4, 4]
    train = problem.split.train
    folds = inner_folds(problem.cohort, train, 5, 0)
    assert all((y[train][held_out] > 0).sum() in (2, 3) for _, held_out in folds)
    y[:80] = -np.abs(y[:80])  # four are left
    problem = problem_of(y)
    events = int((y[problem.split.train] > 0).sum())
    assert len(inner_folds(problem.cohort, problem.split.train, 5, 0)) == events < 5


def test_too_few_events_are_an_error():
    y = -np.arange(1.0, 51)
    y[7] *= -1
    with pytest.raises(UserError, match="of the training people had the event; two or more"):
        problem_of(y)


def test_together_with_features_that_know_nothing_more():
    x, y = simulated(100, 5)
    noise = np.random.default_rng(1).normal(size=(100, 30)).astype(np.float32)
    problem = problem_of(y)
    result = fit_joint("cox", x, noise, problem, HeadsConfig(folds=3))
    test = problem.split.test
    assert concordance_index_censored(y[test] > 0, np.abs(y[test]), result.scores[test])[0] > 0.6
