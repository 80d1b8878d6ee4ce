"""Paired comparisons: exact p-values by scipy, clusters, scales, and no contradiction."""

import numpy as np
import pytest
from scipy import stats

from downstream_tasks.scoring.design import Design
from downstream_tasks.scoring.paired import compare, exchange_test, verdict
from downstream_tasks.scoring.weighted import ScoredRun

ONE_SPLIT = Design("one_split", 60, 20)


def numbers(y, predicted, clusters=None):
    return ScoredRun(y, predicted, np.arange(len(y)) if clusters is None else clusters)


def two_classes(y, log_odds, clusters=None):
    p = 1 / (1 + np.exp(-np.asarray(log_odds, dtype=float)))
    clusters = np.arange(len(y)) if clusters is None else clusters
    return ScoredRun(y, np.stack([1 - p, p], axis=1), clusters)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_the_exact_p_is_scipys(rng):
    y = rng.normal(size=9)
    a, b = y + 0.6 * rng.normal(size=9), rng.normal(size=9)
    losses = (y - a) ** 2, (y - b) ** 2
    expected = stats.permutation_test(
        losses, lambda x, z, axis: (x - z).mean(axis=axis), permutation_type="samples",
        n_resamples=np.inf, vectorized=True,
    )  # fmt: skip
    found = compare([numbers(y, a)], [numbers(y, b)], "mse", ONE_SPLIT)
    assert found.test == "exact paired permutation"
    assert found.p == pytest.approx(expected.pvalue)
    assert found.difference == pytest.approx(expected.statistic)
    # The interval of a mean difference is the paired t-test's.
    t = stats.ttest_rel(*losses).confidence_interval()
    assert found.interval == pytest.approx((t.low, t.high))


def test_a_sample_of_exchanges_is_close_to_all_of_them(rng):
    y = (np.arange(12) % 2).astype(int)
    a, b = (two_classes(y, s * (y - 0.5) + rng.normal(size=12)) for s in (3.0, 0.0))
    exact, every = exchange_test([a], [b], "auroc", n_exchanges=4095)
    sampled, some = exchange_test([a], [b], "auroc", n_exchanges=4094)
    assert (every, some) == (True, False)
    assert sampled == pytest.approx(exact, abs=0.02)


def test_the_units_of_a_cluster_are_exchanged_together(rng):
    """Seven people of 30 events give 2 ** 7 exchanges, so p is never below 2 / 128."""
    person = np.repeat(np.arange(7), 30)
    y = np.tile([0, 1], 105)
    a, b = two_classes(y, 9.0 * (y - 0.5), person), two_classes(y, rng.normal(size=210), person)
    found = compare([a], [b], "accuracy", ONE_SPLIT)
    assert found.p == pytest.approx(2 / 2**7)
    assert found.interval[0] > 0


@pytest.mark.parametrize("metric", ["auroc", "average_precision"])
def test_rankings_do_not_depend_on_the_scale_of_either_method(rng, metric):
    y = np.arange(30) % 2
    score = y + rng.normal(size=30)
    cautious, bold = two_classes(y, 0.1 * score), two_classes(y, 5 * score)
    found = compare([cautious], [bold], metric, ONE_SPLIT)
    assert found.difference == pytest.approx(0)
    assert found.p == 1
    other = two_classes(y, rng.normal(size=30))
    first = compare([cautious], [other], metric, ONE_SPLIT)
    assert first.p == compare([bold], [other], metric, ONE_SPLIT).p


def test_correlations_do_not_depend_on_the_unit_of_either_method(rng):
    y = rng.normal(size=25)
    a, b = y + rng.normal(size=25), rng.normal(size=25)
    first = compare([numbers(y, a)], [numbers(y, b)], "pearson", ONE_SPLIT)
    assert compare([numbers(y, 7 * a + 3)], [numbers(y, b)], "pearson", ONE_SPLIT).p == first.p


def test_equal_methods_are_found_different_no_more_often_than_said():
    """Of 300 comparisons of equally good methods 5 % have p below .05 (binomial SD 1.3 %)."""
    found = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        y = (np.arange(30) < 9).astype(int)
        shared = rng.normal(size=30)
        a, b = (two_classes(y, 1.5 * y + shared + rng.normal(size=30)) for _ in range(2))
        found.append(exchange_test([a], [b], "auroc", n_exchanges=199, seed=seed)[0] < 0.05)
    assert 0.015 < np.mean(found) < 0.085


def test_resampled_runs_never_contradict_themselves():
    """Interval and p are one test: the interval leaves out 0 exactly where p is below .05."""
    design = Design("folds", 80, 20)
    said = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y = rng.normal(size=(5, 20))
        a, b = (
            [numbers(one, s * one + rng.normal(size=20)) for one in y]
            for s in (0.8 + 0.02 * seed, 0.3)
        )
        found = compare(a, b, "pearson", design)
        assert found.test == "corrected resampled t-test"
        assert (found.interval[0] > 0 or found.interval[1] < 0) == (found.p < 0.05)
        said.append(verdict(found.interval, found.p))
    assert set(said) == {"above", "not told apart"}


def test_the_same_predictions_are_not_told_apart(rng):
    y = rng.normal(size=20)
    same = compare([numbers(y, 2 * y)], [numbers(y, 2 * y)], "mse", ONE_SPLIT)
    assert (same.difference, same.p) == (0, 1)
    assert np.isnan(same.interval).all()
    labels = np.arange(20) % 2
    a = two_classes(labels, rng.normal(size=20))
    low, high = compare([a], [a], "balanced_accuracy", ONE_SPLIT).interval
    assert low < 0 < high
    assert verdict((low, high), 1.0) == "not told apart"


def test_verdicts():
    assert verdict((0.1, 0.2), 0.01) == "above"
    assert verdict((-0.2, -0.1), 0.01) == "below"
    assert verdict((-0.1, 0.2), 0.3) == "not told apart"
    assert verdict((0.01, 0.2), 0.07) == "borderline"
    assert verdict((-0.01, 0.2), 0.04) == "borderline"
    assert verdict((0.1, 0.2), np.nan) == "above"
    assert verdict((np.nan, np.nan), 1.0) == "not told apart"
    assert verdict((np.nan, np.nan), np.nan) == "no interval"
    assert verdict((np.nan, np.nan), 0.01) == "no interval"


def test_a_difference_that_is_the_same_in_every_fold_is_not_called_none(rng):
    """Right on everyone against one class for everyone: +.5 in each fold, and no variance."""
    labels = np.arange(10) % 2
    right = [two_classes(labels, 8.0 * labels - 4)] * 5
    constant = [two_classes(labels, np.zeros(10))] * 5
    found = compare(right, constant, "balanced_accuracy", Design("folds", 40, 10))
    assert found.difference == 0.5
    assert verdict(found.interval, found.p) == "no interval"


def test_other_test_people_are_refused(rng):
    y = rng.normal(size=10)
    a, b = numbers(y, y), numbers(y, y, np.arange(10)[::-1])
    with pytest.raises(ValueError, match="same test people"):
        compare([a], [b], "mse", ONE_SPLIT)


def test_an_undefined_metric_has_no_comparison(rng):
    y = rng.normal(size=20)
    found = compare([numbers(y, y)], [numbers(y, np.zeros(20))], "pearson", ONE_SPLIT)
    assert np.isnan([found.difference, found.p, *found.interval]).all()
