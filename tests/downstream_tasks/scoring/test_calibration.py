"""Brier score, expected calibration error and reliability: scikit-learn's, and by hand."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from downstream_tasks.scoring.calibration import (
    calibration_metrics,
    reliability_curve,
    weighted_calibration,
)
from downstream_tasks.scoring.metrics import classification_metrics, metric_names
from downstream_tasks.scoring.weighted import ScoredRun, weighted_metrics


def drawn(n: int, n_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities that know something of them."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(n_classes), n)
    y = np.array([rng.choice(n_classes, p=row) for row in p])
    return y, p


@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_brier_score_is_scikit_learns(n_classes):
    y, p = drawn(80, n_classes)
    expected = brier_score_loss(y, p[:, 1] if n_classes == 2 else p, labels=range(n_classes))
    assert calibration_metrics(y, p)["brier"] == pytest.approx(expected)


def test_the_error_is_the_mean_distance_of_frequency_and_probability_in_the_bins():
    p = np.array([0.05, 0.0, 0.62, 0.68, 0.7, 1.0])  # bins 0, 0, 6, 6, 7 (its lower edge), 9
    y = np.array([0, 1, 1, 0, 1, 1])
    by_hand = (abs(1 - 0.05) + abs(1 - 1.30) + abs(1 - 0.7) + abs(1 - 1.0)) / 6
    assert calibration_metrics(y, np.stack([1 - p, p], 1))["ece"] == pytest.approx(by_hand)


def test_of_several_classes_the_one_called_is_judged():
    p = np.array([[0.6, 0.3, 0.1], [0.2, 0.15, 0.65], [0.1, 0.8, 0.1]])
    y = np.array([0, 1, 1])
    by_hand = (abs(1 - (0.6 + 0.65)) + abs(1 - 0.8)) / 3
    assert calibration_metrics(y, p)["ece"] == pytest.approx(by_hand)


def test_the_curve_is_scikit_learns():
    y, p = drawn(300, 2)
    observed, predicted = calibration_curve(y, p[:, 1], n_bins=10)
    curve = reliability_curve(y, p)
    np.testing.assert_allclose([point.observed for point in curve], observed)
    np.testing.assert_allclose([point.predicted for point in curve], predicted)
    assert sum(point.n for point in curve) == 300


def test_frequencies_are_calibrated_and_their_certain_copies_are_not():
    y, p = drawn(20_000, 2)
    assert calibration_metrics(y, p)["ece"] < 0.02
    sure = np.stack([p[:, 1] < 0.5, p[:, 1] >= 0.5], 1).astype(float)
    assert calibration_metrics(y, sure)["ece"] == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_weights_are_repetitions(n_classes):
    """So that leaving people out gives the interval of both."""
    y, p = drawn(40, n_classes)
    counts = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40), size=5)
    values = weighted_calibration(y, p, counts.astype(float))
    for row, count in enumerate(counts):
        again = np.repeat(np.arange(40), count)
        for name, value in calibration_metrics(y[again], p[again]).items():
            assert values[name][row] == pytest.approx(value)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_both_are_among_the_metrics_with_intervals(n_classes):
    y, p = drawn(40, n_classes)
    assert {"brier", "ece"} <= set(metric_names("classification", n_classes))
    single = classification_metrics(y, p)
    run = ScoredRun(y, p, np.arange(40))
    weighted = weighted_metrics(run, np.ones((1, 40)))
    for name, value in calibration_metrics(y, p).items():
        assert single[name] == pytest.approx(value)
        assert weighted[name][0] == pytest.approx(value)
