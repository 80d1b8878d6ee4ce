"""Intervals over clusters: against scipy, by hand, and where there is nothing to tell them from."""

import numpy as np
import pytest
from scipy import stats

from downstream_tasks.scoring import intervals
from downstream_tasks.scoring.design import Design
from downstream_tasks.scoring.intervals import (
    degenerate_notes,
    interval_of,
    leave_out_clusters,
    summarise,
)
from downstream_tasks.scoring.weighted import ScoredRun

ONE_SPLIT = Design("one_split", 60, 20)


def two_classes(y, positive, clusters=None):
    p = np.asarray(positive, dtype=float)
    clusters = np.arange(len(p)) if clusters is None else clusters
    return ScoredRun(np.asarray(y), np.stack([1 - p, p], axis=1), np.asarray(clusters))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def error_of(runs, metric):
    return np.sqrt((leave_out_clusters(runs).influence[metric] ** 2).sum())


def test_the_standard_error_of_a_mean_is_the_textbooks(rng):
    y, guess = rng.normal(size=(2, 40))
    run = ScoredRun(y, guess, np.arange(40))
    assert error_of([run], "mse") == pytest.approx(stats.sem((y - guess) ** 2))
    assert error_of([run], "mae") == pytest.approx(stats.sem(np.abs(y - guess)))
    # Two runs with other seeds are one mean per person, not twice as many people.
    again = ScoredRun(y, guess[::-1], np.arange(40))
    both = ((y - guess) ** 2 + (y - guess[::-1]) ** 2) / 2
    assert error_of([run, again], "mse") == pytest.approx(stats.sem(both))


def test_clusters_count_and_not_their_units(rng):
    """20 events a person that are all right or all wrong: 10 observations, not 200."""
    correct = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 1])
    right = np.repeat(correct, 20)
    y = np.tile([0, 1], 100)
    person = np.repeat(np.arange(10), 20)
    run = two_classes(y, np.where(right, y, 1 - y) * 0.8 + 0.1, person)
    assert error_of([run], "accuracy") == pytest.approx(stats.sem(correct))
    low, high = summarise([run], ONE_SPLIT)["accuracy"]
    alone = summarise([two_classes(y, np.where(right, y, 1 - y) * 0.8 + 0.1)], ONE_SPLIT)
    assert high - low > 3 * np.ptp(alone["accuracy"])


def test_the_standard_error_of_auroc_is_delongs(rng):
    y = np.arange(60) % 3 == 0
    score = rng.normal(size=60) + y
    run = two_classes(y.astype(int), 1 / (1 + np.exp(-score)))
    above = (score[y][:, None] > score[~y]).astype(float)
    delong = above.mean(1).var(ddof=1) / y.sum() + above.mean(0).var(ddof=1) / (~y).sum()
    assert error_of([run], "auroc") == pytest.approx(np.sqrt(delong), rel=0.03)


@pytest.mark.parametrize(("hits", "n"), [(7, 10), (1, 40), (40, 40), (0, 12)])
def test_shares_get_wilsons_interval(hits, n):
    share = hits / n
    error = np.sqrt(share * (1 - share) / n)
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    found = interval_of("accuracy", share, error, np.inf, decisions=n)
    assert found == pytest.approx((expected.low, expected.high))


def test_correlations_get_fishers_interval(rng):
    x, y = rng.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], size=30).T
    expected = stats.pearsonr(x, y).confidence_interval()
    r = stats.pearsonr(x, y).statistic
    found = interval_of("pearson", r, (1 - r**2) / np.sqrt(27), np.inf)
    assert found == pytest.approx((expected.low, expected.high))


def test_errors_and_r2_stay_in_their_range():
    low, high = interval_of("mse", 0.1, 0.2, 5)
    assert 0 < low < 0.1 < high
    assert 0.1 - low < high - 0.1
    low, high = interval_of("r2", 0.9, 0.2, 5)
    assert low < 0.9 < high < 1
    assert np.isnan(interval_of("mse", 0.1, 0.0, 5)).all()
    assert np.isnan(interval_of("pearson", 1.0, 0.0, 5)).all()


@pytest.mark.parametrize(("n_classes", "worst"), [(2, 1.0), (3, 2.0)])
def test_the_brier_score_of_few_people_is_no_worse_than_the_worst(n_classes, worst):
    y = np.array([0, 1, 0, 1])
    scores = np.full((4, n_classes), 0.02)
    scores[np.arange(4), [0, 0, 0, 0]] = 1 - 0.02 * (n_classes - 1)
    run = ScoredRun(y, scores, np.arange(4).astype(str))
    assert summarise([run], ONE_SPLIT)["brier"][1] == worst


def test_degrees_of_freedom_are_those_of_the_smaller_class(rng):
    """Welch's for a difference of means is what the balanced accuracy needs too."""
    y = np.r_[np.ones(9, int), np.zeros(29, int)]
    run = two_classes(y, rng.random(38))
    jackknife = leave_out_clusters([run])
    df = jackknife.degrees_of_freedom(jackknife.influence["balanced_accuracy"])
    right = (run.scores.argmax(1) == y).astype(float)
    welch = stats.ttest_ind(right[y == 1], right[y == 0], equal_var=False).df
    assert df == pytest.approx(welch, rel=0.1)
    assert 8 <= df < 37
    people = leave_out_clusters(
        [ScoredRun(rng.normal(size=30), rng.normal(size=30), np.arange(30))]
    )
    assert people.degrees_of_freedom(people.influence["mse"]) == 29


def test_many_clusters_are_left_out_some_at_a_time(rng, monkeypatch):
    """The cost stays bounded; the few of a rare class are still left out one by one."""
    y = (np.arange(900) < 12).astype(int)
    run = two_classes(y, np.clip(0.3 * y + rng.random(900), 0, 1))
    exact = {name: error_of([run], name) for name in ("accuracy", "balanced_accuracy", "auroc")}
    monkeypatch.setattr(intervals, "_MAX_GROUPS", 200)
    grouped = leave_out_clusters([run])
    assert len(grouped.stratum) == 212
    assert grouped.clusters_of_class.tolist() == [888, 12]
    for name, error in exact.items():
        found = np.sqrt((grouped.influence[name] ** 2).sum())
        assert found == pytest.approx(error, rel=0.15), name


def test_perfect_people_are_not_a_certainty():
    y = np.tile([0, 1], 10)
    low, high = summarise([two_classes(y, y * 0.8 + 0.1)], ONE_SPLIT)["balanced_accuracy"]
    assert high == 1
    assert 0.6 < low < 0.9
    # Events of 10 perfect people: nothing says how alike the events of a person are.
    y = np.tile([0, 1], 120)
    of_people = summarise([two_classes(y, y * 0.8 + 0.1, np.repeat(np.arange(10), 24))], ONE_SPLIT)
    assert of_people["accuracy"][0] < 0.75


def test_one_class_for_everyone_is_said_and_is_no_confident_point(rng):
    y = (np.arange(38) < 9).astype(int)
    run = two_classes(y, 0.4 * rng.random(38))
    found = summarise([run], ONE_SPLIT)
    low, high = found["balanced_accuracy"]
    assert low < 0.4
    assert high > 0.6
    assert degenerate_notes([run], ("NC", "MCI")) == ("predicts NC for everyone",)
    fine = two_classes(y, rng.random(38))
    assert degenerate_notes([run, fine], ("NC", "MCI")) == (
        "predicts NC for everyone in 1 of 2 runs",
    )
    assert degenerate_notes([fine], ("NC", "MCI")) == ()


def test_a_constant_has_no_interval_where_no_test_people_could_change_it(rng):
    y = (np.arange(38) < 9).astype(int)
    run = two_classes(y, np.full(38, 9 / 38))
    found = summarise([run], ONE_SPLIT)
    assert np.isnan([found["balanced_accuracy"], found["auroc"]]).all()
    assert found["accuracy"][0] < 29 / 38 < found["accuracy"][1]  # how many are of that class
    assert degenerate_notes([run], ("NC", "MCI")) == ("gives everyone the same scores",)
    number = ScoredRun(rng.normal(size=30), np.zeros(30), np.arange(30))
    assert np.isnan(summarise([number], ONE_SPLIT)["pearson"]).all()
    assert np.isfinite(summarise([number], ONE_SPLIT)["mse"]).all()
    assert degenerate_notes([number]) == ("gives everyone the same scores",)


def test_a_class_of_one_person_has_no_interval_over_classes(rng):
    y = np.r_[1, 1, np.zeros(20, int)]
    run = two_classes(y, rng.random(22), np.r_[0, 0, np.arange(1, 21)])  # two events of one person
    found = summarise([run], ONE_SPLIT)
    assert np.isnan([found["balanced_accuracy"], found["auroc"]]).all()
    assert np.isfinite(found["accuracy"]).all()
    assert "one test person alone is in class MCI" in degenerate_notes([run], ("NC", "MCI"))[0]


def test_the_calibration_error_has_no_interval(rng):
    run = two_classes(np.arange(40) % 2, rng.random(40))
    assert np.isnan(summarise([run], ONE_SPLIT)["ece"]).all()
    assert np.isfinite(summarise([run], ONE_SPLIT)["brier"]).all()


def test_resampled_runs_get_the_corrected_standard_error(rng):
    runs = [
        ScoredRun(y := rng.normal(size=20), 0.5 * y + rng.normal(size=20), np.arange(20))
        for _ in range(5)
    ]
    design = Design("resampled", 60, 20)
    r = np.array([stats.pearsonr(run.y, run.scores).statistic for run in runs])
    error = np.sqrt((1 / 5 + 20 / 60) * r.var(ddof=1))
    half = stats.t.ppf(0.975, 4) * error / (1 - r.mean() ** 2)
    expected = np.tanh(np.arctanh(r.mean()) + np.array([-half, half]))
    assert summarise(runs, design)["pearson"] == pytest.approx(tuple(expected))
    # One run is one split, whatever the split would have been.
    assert summarise(runs[:1], design) == summarise(runs[:1], ONE_SPLIT)
