"""Metrics, plain and under weights, corrected t-test: against scikit-learn, scipy and by hand."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as skm

from downstream_tasks.scoring.metrics import (
    classification_metrics,
    confusion_matrix,
    corrected_resampled_ttest,
    mean_sd,
    metric_names,
    regression_metrics,
)
from downstream_tasks.scoring.weighted import ScoredRun, weighted_metrics


def probabilities(rng, n, n_classes):
    # Rounded, so that ties occur and are tested.
    p = rng.dirichlet(np.ones(n_classes), n).round(1) + 0.05
    return p / p.sum(1, keepdims=True)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_binary_metrics_are_scikit_learns(rng):
    y, p = rng.integers(0, 2, 60), probabilities(rng, 60, 2)
    result, guess = classification_metrics(y, p), p.argmax(1)
    assert tuple(result) == metric_names("classification", 2)
    assert result["balanced_accuracy"] == pytest.approx(skm.balanced_accuracy_score(y, guess))
    assert result["f1"] == pytest.approx(skm.f1_score(y, guess))
    assert result["auroc"] == pytest.approx(skm.roc_auc_score(y, p[:, 1]))
    assert confusion_matrix(y, p).sum() == 60
    assert confusion_matrix(y, p)[1, 0] == ((y == 1) & (guess == 0)).sum()


def test_multiclass_auroc_is_one_against_rest(rng):
    y, p = rng.integers(0, 3, 90), probabilities(rng, 90, 3)
    result = classification_metrics(y, p)
    assert "f1" not in result
    assert result["auroc"] == pytest.approx(skm.roc_auc_score(y, p, multi_class="ovr"))


def test_one_class_in_the_test_set_is_nan_with_a_warning(rng, caplog):
    result = classification_metrics(np.zeros(8, int), probabilities(rng, 8, 2))
    assert np.isnan(result["auroc"])
    assert np.isnan(result["average_precision"])
    assert 0 <= result["accuracy"] <= 1
    assert "undefined" in caplog.text


def test_regression_metrics_in_both_units(rng):
    y = rng.normal(size=50)
    guess = y + rng.normal(size=50)
    result = regression_metrics(y, guess, scale=10.0)
    assert result["mse_raw"] == pytest.approx(100 * result["mse"])
    assert result["mae_raw"] == pytest.approx(10 * result["mae"])
    assert result["r2"] == pytest.approx(skm.r2_score(y, guess))
    assert result["pearson"] == pytest.approx(np.corrcoef(y, guess)[0, 1])


def test_constants_have_no_correlation_and_those_of_the_test_set_are_warned_about(rng, caplog):
    y = rng.normal(size=50)
    assert np.isnan(regression_metrics(y, np.zeros(50), 1.0)["pearson"])  # such as the mean
    assert not caplog.text
    same = regression_metrics(np.ones(50), y, 1.0)
    assert np.isnan([same["r2"], same["pearson"], same["spearman"]]).all()
    assert "all 50 targets are the same" in caplog.text


@pytest.mark.parametrize("n_classes", [2, 3])
def test_weighted_classification_equals_scikit_learn_on_repeated_examples(rng, n_classes):
    y, p = rng.integers(0, n_classes, 40), probabilities(rng, 40, n_classes)
    weights = rng.integers(0, 4, (6, 40))
    result = weighted_metrics(ScoredRun(y, p, np.arange(40)), weights.astype(float))
    for i, w in enumerate(weights):
        expected = classification_metrics(np.repeat(y, w), np.repeat(p, w, axis=0))
        assert {k: v[i] for k, v in result.items()} == pytest.approx(expected)


def test_weighted_regression_equals_scipy_on_repeated_examples(rng):
    y = rng.normal(size=40).round(1)
    guess = (y + rng.normal(size=40)).round(1)
    weights = rng.integers(0, 4, (6, 40))
    result = weighted_metrics(ScoredRun(y, guess, np.arange(40), 3.0), weights.astype(float))
    for i, w in enumerate(weights):
        expected = regression_metrics(np.repeat(y, w), np.repeat(guess, w), 3.0)
        assert {k: v[i] for k, v in result.items()} == pytest.approx(expected)


def test_mean_sd():
    mean, sd = mean_sd([{"accuracy": 0.5}, {"accuracy": 0.7}])
    assert mean["accuracy"] == pytest.approx(0.6)
    assert sd["accuracy"] == pytest.approx(np.sqrt(0.02))
    assert np.isnan(mean_sd([{"accuracy": 0.5}])[1]["accuracy"])


def test_corrected_ttest_by_hand_and_more_careful_than_the_plain_one():
    d = np.array([0.02, 0.05, 0.01, 0.04, 0.03])
    t, p = corrected_resampled_ttest(d, n_train=60, n_test=20)
    assert t == pytest.approx(0.03 / np.sqrt((1 / 5 + 1 / 3) * d.var(ddof=1)))
    plain = stats.ttest_1samp(d, 0)
    assert t < plain.statistic
    assert p > plain.pvalue
    assert p == pytest.approx(2 * stats.t.sf(t, 4))


@pytest.mark.parametrize("d", [[0.1], [0.1, 0.1, 0.1], [0.0, 0.0]])
def test_corrected_ttest_is_nan_without_variance(d):
    assert np.isnan(corrected_resampled_ttest(np.array(d), 60, 20)).all()
