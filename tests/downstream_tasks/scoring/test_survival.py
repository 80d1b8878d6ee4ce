"""Concordance of risks with times to an event, against scikit-survival, and its interval."""

import time as clock

import numpy as np
import pytest
from scipy import stats
from sksurv.metrics import concordance_index_censored
from sksurv.nonparametric import kaplan_meier_estimator

from downstream_tasks.scoring.design import Design
from downstream_tasks.scoring.intervals import leave_out_clusters, summarise
from downstream_tasks.scoring.paired import compare
from downstream_tasks.scoring.survival import kaplan_meier, signed_times, weighted_concordance
from downstream_tasks.scoring.weighted import ScoredRun, weighted_metrics

ONE_SPLIT = Design("one_split", 100, 50)


def simulated(n: int, seed: int, effect: float = 1.0, censoring: float = 1.0, rounded: bool = True):
    """Signed times and the log hazard that they come from; many times and risks are tied."""
    rng = np.random.default_rng(seed)
    risk = np.round(rng.normal(size=n), 1) if rounded else rng.normal(size=n)
    time = rng.exponential(np.exp(-effect * risk))
    lost = rng.exponential(1 / censoring, n)
    observed = np.minimum(time, lost)
    observed = np.ceil(10 * observed) if rounded else observed
    return signed_times(observed, time <= lost), risk


@pytest.mark.parametrize("censoring", [0.1, 1.0, 8.0])
def test_c_is_that_of_scikit_survival_with_ties_and_heavy_censoring(censoring):
    for seed in range(5):
        y, risk = simulated(80, seed, censoring=censoring)
        expected = concordance_index_censored(y > 0, np.abs(y), risk)[0]
        assert weighted_concordance(y, risk, np.ones((1, 80)))[0] == pytest.approx(expected)


def test_weights_leave_people_out_and_draw_them_again():
    y, risk = simulated(40, 0)
    weights = np.random.default_rng(0).integers(0, 2, (6, 40)).astype(float)
    found = weighted_concordance(y, risk, weights)
    for value, kept in zip(found, weights == 1, strict=True):
        again = concordance_index_censored(y[kept] > 0, np.abs(y[kept]), risk[kept])[0]
        assert value == pytest.approx(again)
    run = ScoredRun(y, risk, np.arange(40), survival=True)
    assert weighted_metrics(run, weights)["c_index"] == pytest.approx(found)


def test_who_predicts_nothing_has_a_half_and_no_pair_no_value():
    y, risk = simulated(30, 0)
    assert weighted_concordance(y, np.zeros(30), np.ones((1, 30)))[0] == 0.5
    with np.errstate(invalid="ignore"):
        assert np.isnan(weighted_concordance(-np.abs(y), risk, np.ones((1, 30)))[0])


def test_the_jackknife_is_that_of_leaving_each_person_out():
    y, risk = simulated(60, 1)
    clusters = np.repeat(np.arange(30), 2)
    jackknife = leave_out_clusters([ScoredRun(y, risk, clusters, survival=True)])
    by_hand = []
    for cluster in range(30):
        kept = clusters != cluster
        by_hand.append(concordance_index_censored(y[kept] > 0, np.abs(y[kept]), risk[kept])[0])
    error = np.sqrt(29 / 30 * ((by_hand - np.mean(by_hand)) ** 2).sum())
    assert np.sqrt((jackknife.influence["c_index"] ** 2).sum()) == pytest.approx(error)
    assert jackknife.clusters_of_class == [len(set(clusters[y > 0]))]


def test_intervals_cover_the_population():
    y, risk = simulated(4000, 100, effect=0.7, rounded=False)
    true = weighted_concordance(y, risk, np.ones((1, 4000)))[0]
    covered = []
    for seed in range(300):
        y, risk = simulated(60, seed, effect=0.7, rounded=False)
        bounds = summarise([ScoredRun(y, risk, np.arange(60), survival=True)], ONE_SPLIT)
        low, high = bounds["c_index"]
        covered.append(low <= true <= high)
    # .93 is asked for; of 300 simulations so many are below it in one of a thousand.
    assert sum(covered) >= stats.binom.ppf(0.001, 300, 0.93)


def test_one_event_has_no_interval():
    y = -np.arange(1.0, 21)
    y[3] = 4.0
    run = ScoredRun(y, np.arange(20.0), np.arange(20), survival=True)
    assert np.isnan(summarise([run], ONE_SPLIT)["c_index"]).all()


def test_a_paired_comparison_finds_who_knows_more_and_is_fast():
    y, risk = simulated(500, 0)
    noise = np.random.default_rng(1).normal(size=500)
    run = ScoredRun(y, risk, np.arange(500), survival=True)
    other = ScoredRun(y, noise, np.arange(500), survival=True)
    began = clock.monotonic()
    found = compare([run], [other], "c_index", ONE_SPLIT, n_exchanges=199)
    assert clock.monotonic() - began < 20
    assert found.interval[0] > 0
    assert found.p < 0.01
    same = compare([run], [run], "c_index", ONE_SPLIT, n_exchanges=19)
    assert same.difference == 0
    assert same.p == 1


def test_kaplan_meier_is_that_of_scikit_survival():
    y, _ = simulated(50, 3)
    steps, share = kaplan_meier(y)
    times, expected = kaplan_meier_estimator(y > 0, np.abs(y))
    assert share[1:] == pytest.approx(expected[np.isin(times, steps)])
    assert (steps[0], share[0]) == (0, 1)
