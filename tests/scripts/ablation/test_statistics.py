"""Paired tests and the correction against scipy and statsmodels."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from scripts.ablation.statistics import Paired, holm, paired


def alone(difference: np.ndarray) -> Paired:
    """Of people without relatives."""
    return paired(difference, np.zeros(len(difference)), np.arange(len(difference)))


def test_interval_and_p_are_those_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, 21), rng.normal(size=21)
    found, expected = paired(a, b, np.arange(21)), stats.ttest_rel(a, b)
    bounds = expected.confidence_interval(0.95)
    assert found.t_p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high))
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b))
    assert (found.n, found.gain) == (21, sum(x > y for x, y in zip(a, b, strict=True)))


@pytest.mark.parametrize("n", [2, 5, 12])
def test_all_sign_flips_are_made_where_they_are_few(n):
    d = np.random.default_rng(n).normal(0.4, 1, n)
    expected = stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert alone(d).flip_p == pytest.approx(expected)


def test_a_sample_of_sign_flips_is_near_the_t_test_and_never_0():
    d = np.random.default_rng(1).normal(0.35, 1, 33)
    assert alone(d).flip_p == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.01)
    assert alone(np.full(33, 0.1)).flip_p == pytest.approx(1e-5, rel=0.01)


def test_seven_people_who_all_gain_cannot_be_surer_than_two_in_128():
    assert alone(np.array([0.1, 0.2, 0.15, 0.3, 0.12, 0.11, 0.2])).flip_p == 2 / 128


def test_where_nobody_differs_nothing_is_found_and_one_person_is_no_test():
    same = alone(np.zeros(3))
    assert (same.mean, same.gain, same.t_p, same.flip_p) == (0, 0, 1, 1)
    one = alone(np.array([0.5]))
    assert (one.mean, one.n) == (0.5, 1)
    assert np.isnan([one.t_p, one.flip_p, one.low]).all()
    assert np.isnan(alone(np.array([])).mean)


def test_a_missing_score_is_refused():
    with pytest.raises(ValueError, match="finite"):
        alone(np.array([0.1, np.nan]))


def test_holm_is_that_of_statsmodels():
    p = np.random.default_rng(0).uniform(0, 0.2, 9)
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])


def test_what_was_not_tested_does_not_count_in_the_correction():
    corrected = holm([0.01, np.nan, 0.04])
    np.testing.assert_allclose(corrected[[0, 2]], [0.02, 0.04])
    assert np.isnan(corrected[1])
