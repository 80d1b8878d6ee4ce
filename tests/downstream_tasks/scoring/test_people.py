"""Scores of people: intervals, sign flips, Holm; against scipy and by hand."""

import numpy as np
import pytest
from scipy import stats

from downstream_tasks.scoring.people import compare_people, holm, mean_interval, sign_flip


def test_the_interval_of_people_without_families_is_scipys():
    values = np.random.default_rng(0).normal(1, 2, 12)
    mean, interval = mean_interval(values, np.arange(12))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean == pytest.approx(values.mean())
    assert interval == pytest.approx((expected.low, expected.high))


def test_families_of_equal_people_count_as_one_person():
    values = np.random.default_rng(0).normal(1, 2, 8)
    twice, families = np.repeat(values, 2), np.repeat(np.arange(8), 2)
    mean, interval = mean_interval(values, np.arange(8))
    assert mean_interval(twice, families)[0] == pytest.approx(mean)
    assert mean_interval(twice, families)[1] == pytest.approx(interval)
    assert sign_flip(twice, families) == sign_flip(values, np.arange(8))


def test_sign_flips_are_scipys_permutation_test():
    difference = np.random.default_rng(1).normal(0.5, 1, 10)
    p, exact = sign_flip(difference, np.arange(10))
    expected = stats.permutation_test(
        (difference, np.zeros(10)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    ).pvalue
    assert exact
    assert p == pytest.approx(expected)
    many = np.random.default_rng(2).normal(0.3, 1, 30)
    p, exact = sign_flip(many, np.arange(30))
    assert not exact
    assert p == pytest.approx(stats.ttest_1samp(many, 0).pvalue, rel=0.2)


def test_many_people_who_all_gain_have_a_small_p():
    gain = np.random.default_rng(0).uniform(0.5, 1, 33)
    assert sign_flip(gain, np.arange(33))[0] <= 2e-5  # so that Holm leaves it below .001
    assert sign_flip(np.ones(10), np.arange(10)) == (2 / 1024, True)


def test_a_comparison_says_who_gains():
    a, b = np.array([0.3, 0.5, 0.1]), np.array([0.2, 0.6, 0.0])
    found = compare_people(a, b, np.arange(3))
    assert (found.n_gain, found.n_people) == (2, 3)
    assert found.difference == pytest.approx((a - b).mean())


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1, 1])
