"""Kinds of connectivity, against nilearn and by hand; what is fitted sees training people only."""

import numpy as np
import pytest
from nilearn.connectome import ConnectivityMeasure
from scipy.linalg import subspace_angles
from sklearn.covariance import LedoitWolf

from downstream_tasks.features import connectivity
from downstream_tasks.features.registry import REGISTRY

R, T, PEOPLE = 6, 50, 8


@pytest.fixture
def people():
    """Series ``[R, T]`` of eight people with common and personal connectivity, and offsets."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(R, R))
    return [
        100 * rng.normal(size=(R, 1))
        + 7 * (mixing + 0.3 * rng.normal(size=(R, R))) @ rng.normal(size=(R, T))
        for _ in range(PEOPLE)
    ]


def zscored(series):
    return (series - series.mean(1, keepdims=True)) / series.std(1, keepdims=True)


def test_partial_correlation_is_nilearns(people):
    measure = ConnectivityMeasure(LedoitWolf(store_precision=False), kind="partial correlation")
    theirs = measure.fit_transform([zscored(series).T for series in people])
    for series, matrix in zip(people, theirs, strict=True):
        upper = np.arctanh(matrix[np.triu_indices(R, k=1)])
        np.testing.assert_allclose(connectivity.partial_correlation(series), upper, atol=1e-5)


def test_tangent_space_is_nilearns_fitted_on_the_training_people(people):
    measure = ConnectivityMeasure(LedoitWolf(store_precision=False), kind="tangent", vectorize=True)
    theirs = measure.fit([zscored(series).T for series in people[:5]]).transform(
        [zscored(series).T for series in people]
    )
    function = connectivity.fit_tangent(people[:5])
    for series, vector in zip(people, theirs, strict=True):
        np.testing.assert_allclose(function(series), vector, atol=1e-5)
    assert np.abs(theirs[:5].mean(axis=0)).max() < 1e-3  # the training people's mean is the origin


def test_the_reference_of_a_large_cohort_is_that_of_some(people, monkeypatch):
    monkeypatch.setattr(connectivity, "_MAX_REFERENCE", 3)
    read = []

    class Training(list):
        def __getitem__(self, i):
            read.append(i)
            return super().__getitem__(i)

    function = connectivity.fit_tangent(Training(people))
    assert read == [0, 3, 7]
    expected = connectivity.fit_tangent([people[i] for i in read])
    np.testing.assert_allclose(function(people[1]), expected(people[1]))


def test_the_gram_matrix_is_that_of_the_unfolded_tensor(people):
    z = zscored(people[0])
    tensor = np.einsum("it,jt,kt->ijk", z, z, z) / T
    unfolded = tensor.reshape(R, R * R)
    np.testing.assert_allclose(connectivity.coskewness_gram(z), unfolded @ unfolded.T)


def test_the_subspace_of_coskewness_is_where_the_skewed_sources_are():
    """Two of eight sources are skewed, and have a quarter of the others' variance."""
    rng = np.random.default_rng(1)
    mixing, _ = np.linalg.qr(rng.normal(size=(8, 8)))

    def person():
        skewed, gaussian = rng.exponential(size=(2, 4000)) - 1, 2 * rng.normal(size=(6, 4000))
        return mixing @ np.concatenate([skewed, gaussian])

    series = [person() for _ in range(20)]
    kept = connectivity.coskewness_directions(series, 2)
    sd = np.mean([one.std(1) for one in series], axis=0)
    skewed = mixing[:, :2] / sd[:, None]
    assert subspace_angles(kept, skewed).max() < 0.2
    variance = np.linalg.eigh(sum(np.cov(zscored(one)) for one in series))[1][:, -2:]
    assert subspace_angles(variance, skewed).max() > 1  # radians: variance does not find them
    assert connectivity.fit_coskewness(series)(series[0]).shape == (4 * 3 // 2,)  # half of 8


def test_coskewness_weighs_every_person_alike(people):
    """A spike of one person has a moment of sixth order that would drown all others."""
    spiked = [series.copy() for series in people]
    spiked[0][:, 10] += 1e3 * np.arange(1, R + 1)
    features = connectivity.fit_coskewness(spiked)(people[1])
    eighth = sum(
        gram / np.trace(gram)
        for gram in (connectivity.coskewness_gram(zscored(series)) for series in spiked)
    )
    kept = np.linalg.eigh(eighth)[1][:, -R // 2 :]
    expected = np.corrcoef(kept.T @ zscored(people[1]))[np.triu_indices(R // 2, k=1)]
    np.testing.assert_allclose(np.abs(features), np.abs(np.arctanh(expected)), atol=1e-5)


@pytest.mark.parametrize("name", ["fc_partial", "fc_tangent", "fc_coskewness"])
def test_a_constant_roi_is_on_its_own(people, name):
    entry = REGISTRY[name]
    for series in people[::2]:
        series[2] = 5.0
    function = entry.function(people) if entry.fitted else entry.function
    for series in people:
        features = function(series)
        assert np.isfinite(features).all()
        assert features.dtype == np.float32
        assert np.abs(features).max() < 6


def test_lagged_correlation_and_autocorrelation_by_hand(people):
    for series in people[:2]:
        z = zscored(series)
        by_hand = [
            [sum(z[i, t + 1] * z[j, t] for t in range(T - 1)) / (T - 1) for j in range(R)]
            for i in range(R)
        ]
        found = connectivity.lagged_correlation(series)
        np.testing.assert_allclose(found.reshape(R, R), by_hand, atol=1e-6)
        np.testing.assert_allclose(
            connectivity.autocorrelation(series), np.diag(by_hand), atol=1e-6
        )


def test_power_covariance_by_hand(people):
    z = zscored(people[0])
    power = np.array([[z[r, 8 * w : 8 * w + 8].std() for w in range(6)] for r in range(R)])
    centred = power - power.mean(1, keepdims=True)
    by_hand = (centred @ centred.T / 6)[np.triu_indices(R)]
    np.testing.assert_allclose(connectivity.power_covariance(people[0]), by_hand, atol=1e-6)


@pytest.mark.parametrize("name", ["lagged_fc", "autocorrelation", "power_covariance"])
@pytest.mark.parametrize("frames", [1, 7, 8, 40])
def test_dynamics_of_short_series_and_constant_rois_are_finite(people, name, frames):
    series = people[0][:, :frames].copy()
    series[1] = 3.0
    assert np.isfinite(REGISTRY[name].function(series)).all()
