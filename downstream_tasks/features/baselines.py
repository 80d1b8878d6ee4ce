"""Features without the model, and the controls: what any result has to be compared with.

A feature function maps a series ``[R, T]`` to a vector. Runs are read one at a time, so memory
holds the feature table and one run.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from src.datasets.connectivity import correlation

Features = Callable[[np.ndarray], np.ndarray]

# Correlations are held off 1, where the Fisher z is infinite: two copies of an ROI, short clips.
MAX_CORRELATION = 1 - 1e-6


def functional_connectivity(series: np.ndarray) -> np.ndarray:
    """Upper triangle of the ROI correlation matrix, Fisher z, ``[R (R - 1) / 2]``.

    A constant ROI has no correlation; its entries are 0.
    """
    upper = correlation(series.astype(np.float64))[np.triu_indices(len(series), k=1)]
    return fisher_z(upper)


def fisher_z(correlations: np.ndarray) -> np.ndarray:
    """Arctanh of correlations, float32; those of 1 stay finite."""
    return np.arctanh(np.clip(correlations, -MAX_CORRELATION, MAX_CORRELATION)).astype(np.float32)


def roi_statistics(series: np.ndarray) -> np.ndarray:
    """Mean and variance of each ROI, ``[2 R]``."""
    series = np.asarray(series, dtype=np.float64)
    return np.concatenate([series.mean(axis=1), series.var(axis=1)]).astype(np.float32)


def log_roi_sd(series: np.ndarray) -> np.ndarray:
    """Log standard deviation of each ROI, ``[R]``; a constant ROI gets the log of the smallest."""
    sd = series.std(axis=1, dtype=np.float64)
    least = sd[sd > 0].min(initial=np.inf)
    return np.log(np.maximum(sd, least if np.isfinite(least) else 1.0)).astype(np.float32)


def raw_values(series: np.ndarray) -> np.ndarray:
    """The values themselves, ``[R T]``."""
    return np.ascontiguousarray(series, dtype=np.float32).ravel()


def patch_means(patches: np.ndarray) -> np.ndarray:
    """Mean of each patch of ``[R, P, frames]``, as ``[R P]``."""
    return patches.mean(axis=2, dtype=np.float64).astype(np.float32).ravel()


def after_removal(series: np.ndarray, features: Features) -> np.ndarray:
    """``features`` of the series ``[R, ...]`` without its global signal.

    That is the mean over ROIs of each frame, subtracted from them. An ROI with one value only, as a
    bad one has, is no part of it and stays as it is.
    """
    varies = np.ptp(series.reshape(len(series), -1), axis=1) > 0
    removed = np.array(series, dtype=np.float64)
    if varies.any():
        removed[varies] -= removed[varies].mean(axis=0)
    return features(removed)


def feature_table(
    series: Iterable[Sequence[np.ndarray]], features: Features, n_examples: int
) -> np.ndarray:
    """Mean feature vector of the series of each example, float32 ``[n_examples, F]``."""
    table = np.empty((0, 0), dtype=np.float32)
    for example, several in enumerate(series):
        vector = np.mean([features(one) for one in several], axis=0)
        if example == 0:
            table = np.empty((n_examples, len(vector)), dtype=np.float32)
        table[example] = vector
    return table


# --- no features at all --------------------------------------------------------------------------


def training_prior(y_train: np.ndarray, n_classes: int, n_examples: int) -> np.ndarray:
    """What the training examples alone say of everyone: their class frequencies, ``[n, C]``.

    With ``n_classes`` 0 it is their mean target, ``[n]``.
    """
    if not n_classes:
        return np.full(n_examples, y_train.mean())
    frequency = np.bincount(y_train, minlength=n_classes) / len(y_train)
    return np.tile(frequency, (n_examples, 1))
