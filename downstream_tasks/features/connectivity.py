"""Connectivity of other kinds than plain correlation, each of ROIs that are z-scored in time.

Of a series that was put together of clips, a few pairs of frames that a lag or a window joins are
not neighbours. Two kinds have a reference, which is fitted on the training series: a fit is given a
sequence of them, each read when it is asked for, and returns the function of a series.
"""

from collections.abc import Sequence

import numpy as np
from scipy.linalg import eigh
from sklearn.base import BaseEstimator
from sklearn.covariance import LedoitWolf

from downstream_tasks.features.baselines import Features, fisher_z, functional_connectivity

# Their covariances are in memory together, 0.8 GB of 450 ROIs; the mean of more is hardly another.
_MAX_REFERENCE = 500

_MAX_DIRECTIONS = 100

_WINDOW = 8  # frames, over which power is measured


def partial_correlation(series: np.ndarray) -> np.ndarray:
    """Partial correlations between the ROIs of ``[R, T]``, Fisher z, ``[R (R - 1) / 2]``.

    From the inverse of the covariance by Ledoit and Wolf, nilearn's default.
    """
    from nilearn.connectome import prec_to_partial

    partial = prec_to_partial(np.linalg.inv(_covariance(series)))
    return fisher_z(partial[np.triu_indices(len(partial), k=1)])


def lagged_correlation(series: np.ndarray) -> np.ndarray:
    """Correlation of each ROI of ``[R, T]`` with each ROI one frame later, ``[R R]``.

    Entry ``i R + j`` is of ROI j, and of ROI i a frame later. These are what a linear
    autoregression of order 1 is estimated from, beside FC.
    """
    scaled = _zscore(series)
    lagged = scaled[:, 1:] @ scaled[:, :-1].T / max(1, scaled.shape[1] - 1)
    return lagged.astype(np.float32).ravel()


def autocorrelation(series: np.ndarray) -> np.ndarray:
    """Correlation of each ROI of ``[R, T]`` with itself one frame later, ``[R]``."""
    scaled = _zscore(series)
    return (scaled[:, 1:] * scaled[:, :-1]).sum(1).astype(np.float32) / max(1, scaled.shape[1] - 1)


def power_covariance(series: np.ndarray) -> np.ndarray:
    """Covariance of the power of ROIs over windows of 8 frames, ``[R (R + 1) / 2]``.

    A shorter series is one window, without variance. Power is the SD of the z-scored ROI in a
    window. It tells who is loud together with whom, and how much that varies: what dynamic
    connectivity is about, and FC does not hold.
    """
    scaled = _zscore(series)
    window = min(_WINDOW, scaled.shape[1])
    whole = scaled.shape[1] // window * window
    power = scaled[:, :whole].reshape(len(scaled), -1, window).std(axis=2)
    covariance = np.atleast_2d(np.cov(power, bias=True))
    return covariance[np.triu_indices(len(scaled))].astype(np.float32)


def fit_tangent(training: Sequence[np.ndarray]) -> Features:
    """Tangent-space connectivity, ``[R (R + 1) / 2]``, by nilearn (Varoquaux et al., 2010).

    The logarithm of a series' covariance (by Ledoit and Wolf) after whitening by the geometric mean
    of those of ``training``; of more than 500, of 500 evenly spaced ones.
    """
    from nilearn.connectome import ConnectivityMeasure, sym_matrix_to_vec

    chosen = np.unique(np.linspace(0, len(training) - 1, _MAX_REFERENCE).astype(int))
    measure = ConnectivityMeasure(_AsGiven(), kind="tangent", standardize=False)
    measure.fit([_covariance(training[i]) for i in chosen.tolist()])

    def tangent(series: np.ndarray) -> np.ndarray:
        values, vectors = eigh(measure.whitening_ @ _covariance(series) @ measure.whitening_)
        return sym_matrix_to_vec((vectors * np.log(values)) @ vectors.T).astype(np.float32)

    return tangent


def fit_coskewness(training: Sequence[np.ndarray]) -> Features:
    """FC within the subspace that carries the co-skewness of ``training``, Fisher z.

    The idea is that of arXiv 2606.04010, of which only the abstract was at hand: signals are
    projected into the subspace that best preserves their co-skewness, and FC is computed there. The
    rest is ours. The co-skewness tensor of a series ``z``, ``S[i, j, k]``, is the mean over time of
    ``z[i] z[j] z[k]``. The subspace is that of its higher-order singular value decomposition: the
    leading eigenvectors, half as many as ROIs and at most 100, of ``S1 S1^T`` averaged over the
    training series, where ``S1`` is ``S`` unfolded to ``[R, R^2]``. Each series has weight 1 (trace
    of its ``S1 S1^T``): a moment of sixth order would else be that of the person who moved most.
    The features are the correlations between the series along these directions.
    """
    directions = coskewness_directions(training, min(_MAX_DIRECTIONS, len(training[0]) // 2))
    return lambda series: functional_connectivity(directions.T @ _zscore(series))


def coskewness_directions(training: Sequence[np.ndarray], n_directions: int) -> np.ndarray:
    """Orthonormal basis ``[R, n_directions]`` of the subspace of :func:`fit_coskewness`."""
    n_rois = len(training[0])
    total = np.zeros((n_rois, n_rois))
    for series in training:
        of_series = coskewness_gram(_zscore(series))
        total += of_series / max(np.trace(of_series), np.finfo(float).tiny)
    return eigh(total, subset_by_index=(n_rois - n_directions, n_rois - 1))[1]


def coskewness_gram(series: np.ndarray) -> np.ndarray:
    """``S1 S1^T`` ``[R, R]`` of the co-skewness tensor of centred ``[R, T]``, without the tensor.

    The sum over j and k of ``z[j, t] z[k, t] z[j, s] z[k, s]`` is the square of the product of the
    frames t and s, so that matrices of ``[T, T]`` are enough.
    """
    frames = series.T @ series
    return series @ (frames * frames) @ series.T / series.shape[1] ** 2


class _AsGiven(BaseEstimator):
    """Covariance estimator that is given covariances, so that each is estimated once, and here."""

    def fit(self, covariance: np.ndarray) -> "_AsGiven":
        self.covariance_ = covariance
        return self


def _covariance(series: np.ndarray) -> np.ndarray:
    """Covariance of the z-scored ROIs by Ledoit and Wolf; a constant ROI is one of its own."""
    scaled = _zscore(series)
    covariance = LedoitWolf(store_precision=False, assume_centered=True).fit(scaled.T).covariance_
    constant = np.flatnonzero(~scaled.any(axis=1))
    covariance[constant, constant] = 1.0
    return covariance


def _zscore(series: np.ndarray) -> np.ndarray:
    """Z-score each ROI in time; a constant one becomes 0."""
    series = np.asarray(series, dtype=np.float64)
    centred = series - series.mean(axis=1, keepdims=True)
    sd = centred.std(axis=1, keepdims=True)
    return np.divide(centred, sd, out=np.zeros_like(centred), where=sd > 0)
