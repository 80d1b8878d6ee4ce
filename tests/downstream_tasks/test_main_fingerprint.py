"""Identification: which features count, and that nothing is found where nothing differs."""

import numpy as np

from downstream_tasks.main_fingerprint import identify


def test_every_feature_counts_alike_whatever_its_unit():
    """A feature that varies a thousand times more, and means nothing, must not decide."""
    rng = np.random.default_rng(0)
    person = rng.normal(size=(20, 30))
    first, second = (person + 0.2 * rng.normal(size=(20, 30)) for _ in range(2))
    for run in (first, second):
        run[:, :3] = 1000 * rng.normal(size=(20, 3))
    forward, backward = identify(first, second)
    np.testing.assert_array_equal(forward, np.arange(20))
    np.testing.assert_array_equal(backward, np.arange(20))


def test_rounding_is_no_fingerprint():
    rng = np.random.default_rng(0)
    noise = 1 + 1e-7 * rng.normal(size=(5, 8))  # the same for everyone, as float32 gives it
    forward, backward = identify(noise, noise)
    assert not forward.any()
    assert not backward.any()
