"""Raw-signal baselines and the controls shown to the encoder."""

import numpy as np
import pytest
from nilearn.connectome import ConnectivityMeasure
from sklearn.covariance import EmpiricalCovariance

from downstream_tasks.features import baselines
from downstream_tasks.features.registry import REGISTRY, WITHOUT_GLOBAL_SIGNAL


@pytest.fixture
def series():
    return np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32)


def test_fc_is_nilearns_correlation(series):
    measure = ConnectivityMeasure(EmpiricalCovariance(), kind="correlation")
    matrix = measure.fit_transform([series.T])[0]
    i, j = np.triu_indices(6, k=1)
    np.testing.assert_allclose(
        baselines.functional_connectivity(series), np.arctanh(matrix[i, j]), atol=1e-5
    )


def test_fc_of_copied_and_constant_rois_is_finite(series):
    series[1], series[2] = series[0], 3.0
    fc = baselines.functional_connectivity(series)
    assert np.isfinite(fc).all()
    assert fc[0] > 7  # the copy: very high, not infinite
    assert fc[1] == 0  # ROI 0 with the constant one


def test_roi_features_by_hand(series):
    stats = baselines.roi_statistics(series)
    np.testing.assert_allclose(stats[:6], series.mean(1), atol=1e-6)
    np.testing.assert_allclose(stats[6:], series.var(1), rtol=1e-5)
    series[3] = 1.0
    log_sd = baselines.log_roi_sd(series)
    assert np.isfinite(log_sd).all()
    np.testing.assert_allclose(log_sd[0], np.log(series[0].std()), rtol=1e-5)
    means = baselines.patch_means(series.reshape(6, 5, 8)).reshape(6, 5)
    np.testing.assert_allclose(means[2, 1], series[2, 8:16].mean(), rtol=1e-5)
    np.testing.assert_array_equal(baselines.raw_values(series).reshape(6, 40), series)


@pytest.mark.parametrize("shape", [(6, 40), (6, 5, 8)])
def test_features_without_the_global_signal_by_hand(shape):
    """Frame by frame, over the ROIs that are not constant; patches are frames in their order."""
    values = np.random.default_rng(0).normal(3, 2, shape).astype(np.float32)
    values[2] = 0  # a bad ROI after normalisation
    before = values.copy()
    expected = values.reshape(6, 40).astype(np.float64)
    for t in range(40):
        mean = sum(expected[r, t] for r in (0, 1, 3, 4, 5)) / 5
        for r in (0, 1, 3, 4, 5):
            expected[r, t] -= mean
    removed = baselines.after_removal(values, baselines.raw_values)
    np.testing.assert_allclose(removed, expected.ravel(), atol=1e-6)
    np.testing.assert_array_equal(values, before)
    twice = baselines.after_removal(
        values, lambda once: baselines.after_removal(once, baselines.raw_values)
    )
    np.testing.assert_allclose(twice, removed, atol=1e-6)
    constant = np.ones((3, 4))  # no ROI varies: there is nothing to remove
    assert (baselines.after_removal(constant, baselines.raw_values) == 1).all()


@pytest.mark.parametrize("name", WITHOUT_GLOBAL_SIGNAL)
def test_entries_without_the_global_signal_are_those_of_the_series_without_it(name, series):
    entry, without = REGISTRY[name], REGISTRY[f"{name}_gsr"]
    assert without.title == f"{entry.title}, global signal removed"
    for same in ("reads", "kind", "by_patch", "plain_head"):
        assert getattr(without, same) == getattr(entry, same)
    given = series.reshape(len(series), -1, 10) if entry.by_patch else series
    np.testing.assert_allclose(
        without.function(given), entry.function(given - given.mean(axis=0)), atol=1e-4
    )


def test_feature_table_averages_the_clips_of_an_example(series):
    examples = [[series[:, :20], series[:, 20:]], [series]]
    table = baselines.feature_table(iter(examples), baselines.roi_statistics, 2)
    np.testing.assert_allclose(table[:, :6], [series.mean(1)] * 2, atol=1e-6)
    variance = (series[:, :20].var(1) + series[:, 20:].var(1)) / 2
    np.testing.assert_allclose(table[0, 6:], variance, rtol=1e-5)


def test_majority_is_the_training_frequency():
    scores = baselines.training_prior(np.array([0, 1, 1, 2]), 4, 3)
    np.testing.assert_allclose(scores, [[0.25, 0.5, 0.25, 0.0]] * 3)
