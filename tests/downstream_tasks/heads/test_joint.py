"""A head on two blocks of features: the second adds what it knows, and costs little if nothing."""

import numpy as np
import pytest

from downstream_tasks.cohort.problem import Problem, make_target
from downstream_tasks.cohort.splits import Split
from downstream_tasks.config import HeadsConfig
from downstream_tasks.heads import joint
from downstream_tasks.heads.estimators import fit_head
from downstream_tasks.heads.joint import fit_joint
from tests.downstream_tasks.conftest import make_cohort

CONFIG = HeadsConfig()
TRAIN, TEST = 60, 300


def cohort_of(seed, *, added_knows, width=40, classes=()):
    """FC knows one half of the target; the added features the other half, the same, or nothing."""
    rng = np.random.default_rng(seed)
    n = TRAIN + TEST
    halves = rng.normal(size=(n, 2))
    noise = rng.normal(size=n)
    y = halves.sum(axis=1) + noise if added_knows == "rest" else halves[:, 0] + noise
    connectome = rng.normal(size=(n, 3000)) + 0.15 * halves[:, :1] * rng.normal(size=3000)
    added = rng.normal(size=(n, width))
    if added_knows == "rest":
        added += 0.8 * halves[:, 1:] * rng.normal(size=width)
    if added_knows == "same":
        added += 0.8 * halves[:, :1] * rng.normal(size=width)
    target = (y > 0).astype(int) if classes else y
    cohort = make_cohort(target, classes=classes)
    split = Split(np.arange(TRAIN), np.array([], dtype=int), np.arange(TRAIN, n))
    metric = "auroc" if classes else "mse"
    problem = Problem(cohort, split, make_target(cohort, split), metric, 0)
    return connectome.astype(np.float32), added.astype(np.float32), problem


def error(result, problem):
    test = problem.split.test
    return np.square(result.scores[test] - problem.target.y[test]).mean()


def gains(added_knows, repeats=8, **options):
    """What the test error of FC falls by, of each repetition."""
    gained = []
    for seed in range(repeats):
        fc, added, problem = cohort_of(seed, added_knows=added_knows, **options)
        alone = error(fit_head("ridge", fc, problem, CONFIG), problem)
        gained.append(alone - error(fit_joint("ridge", fc, added, problem, CONFIG), problem))
    return np.array(gained)


@pytest.mark.parametrize("width", [3, 40, 2000])
def test_noise_costs_next_to_nothing_whatever_its_width(width):
    """The test error of FC is about .7 here (z-scored target)."""
    lost = -gains("nothing", width=width)
    assert lost.mean() < 0.015
    assert lost.max() < 0.15


@pytest.mark.parametrize("width", [3, 40, 2000])
def test_what_is_new_is_gained_whatever_its_width(width):
    """At best the other half is known too: the error falls by up to a third of the variance."""
    gained = gains("rest", width=width)
    assert gained.mean() > 0.12
    assert (gained > 0).mean() >= 0.9


def test_what_is_known_already_adds_little():
    assert abs(gains("same", 4).mean()) < gains("rest", 4).mean() / 2


def test_a_share_of_0_is_the_head_of_the_first_block_itself(monkeypatch):
    monkeypatch.setattr(joint, "SHARES", (0.0,))
    for kind, classes in (("ridge", ()), ("logistic", ("a", "b"))):
        fc, added, problem = cohort_of(0, added_knows="rest", classes=classes)
        alone, both = (
            fit_head(kind, fc, problem, CONFIG),
            fit_joint(kind, fc, added, problem, CONFIG),
        )
        np.testing.assert_allclose(both.scores, alone.scores, atol=1e-3)
        assert {**both.chosen, "share": None} == pytest.approx({**alone.chosen, "share": None})


def test_classes_gain_too_and_the_share_is_told():
    fc, added, problem = cohort_of(3, added_knows="rest", classes=("a", "b"))
    both = fit_joint("logistic", fc, added, problem, CONFIG)
    assert both.chosen["share"] > 0
    assert both.linear is None  # it is a map of the blocks, not of the features
    test = problem.split.test
    hit = (both.scores.argmax(axis=1) == problem.target.y)[test].mean()
    alone = fit_head("logistic", fc, problem, CONFIG)
    assert hit > (alone.scores.argmax(axis=1) == problem.target.y)[test].mean() + 0.03


def test_units_do_not_count_and_constant_features_are_harmless():
    fc, added, problem = cohort_of(0, added_knows="rest")
    first = fit_joint("ridge", fc, added, problem, CONFIG)
    scaled = fit_joint("ridge", fc * 1e-3, added * 1e3 + 5, problem, CONFIG)
    np.testing.assert_allclose(scaled.scores, first.scores, atol=1e-2)
    constant = fit_joint("ridge", fc, np.ones_like(added), problem, CONFIG)
    assert np.isfinite(constant.scores).all()


def test_nothing_is_fitted_on_test_people():
    fc, added, problem = cohort_of(0, added_knows="rest")
    before = fit_joint("ridge", fc, added, problem, CONFIG)
    changed_fc, changed = fc.copy(), added.copy()
    changed_fc[problem.split.test[1:]] *= 50
    changed[problem.split.test[1:]] += 50
    after = fit_joint("ridge", changed_fc, changed, problem, CONFIG)
    assert after.chosen == before.chosen
    seen = np.r_[problem.split.train, problem.split.test[:1]]
    np.testing.assert_allclose(after.scores[seen], before.scores[seen], atol=1e-6)
