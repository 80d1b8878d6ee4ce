"""What is read off the tokens of a clip."""

import numpy as np
import pytest
import torch

from downstream_tasks.features import baselines, readouts
from downstream_tasks.features.pooling import LEVELS, pool, pooled_shape

B, R, P, D = 2, 5, 3, 7


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, R, P, D, generator=generator, dtype=torch.float64)


def test_means_by_hand(tokens):
    pooled, by_roi = readouts.mean_of_tokens(tokens), readouts.mean_of_rois(tokens)
    for b in range(B):
        np.testing.assert_allclose(pooled[b], tokens[b].reshape(R * P, D).numpy().mean(0))
        for r in range(R):
            np.testing.assert_allclose(by_roi[b, r], tokens[b, r].numpy().mean(0))


def test_connectivity_is_the_correlation_of_the_tokens_z_scored_by_dimension(tokens):
    tokens = tokens * torch.logspace(-2, 2, D) + 100 * torch.arange(D)  # as real tokens are
    z = readouts.feature_connectivity(tokens).numpy()
    for b in range(B):
        flat = tokens[b].reshape(R * P, D).numpy()
        scaled = ((flat - flat.mean(0)) / flat.std(0)).reshape(R, P * D)
        expected = np.arctanh(np.corrcoef(scaled)[np.triu_indices(R, 1)])
        np.testing.assert_allclose(z[b], expected, atol=1e-8)


def test_connectivity_says_what_fc_says_where_tokens_are_turned_patches():
    """With orthonormal tokens of the patches, products over the width are those over frames."""
    rng = np.random.default_rng(0)
    frames, n = 16, 20
    mixing = rng.normal(size=(n, 4))
    series = mixing @ rng.normal(size=(4, 10 * frames)) + rng.normal(size=(n, 10 * frames))
    patches = torch.tensor(series.reshape(1, n, 10, frames))
    turn, _ = np.linalg.qr(rng.normal(size=(32, frames)))
    tokens = patches @ torch.tensor(turn.T) + 3 * torch.tensor(rng.normal(size=32))
    fc = baselines.functional_connectivity(series)
    ours = readouts.feature_connectivity(tokens)[0].numpy()
    assert ours.shape == fc.shape
    assert np.corrcoef(ours, fc)[0, 1] > 0.95


def test_rois_and_dimensions_that_do_not_vary_have_no_correlation(tokens):
    tokens[:, 2] = tokens.mean(dim=(1, 2))[:, None]
    tokens[..., 3] = 5.0
    z = readouts.feature_connectivity(tokens.float())
    assert torch.isfinite(z).all()
    constant = readouts.feature_connectivity(torch.full((1, R, P, D), 2.5))
    assert not constant.any()
    one_patch = readouts.feature_connectivity(tokens[:, :, :1].float())  # of an event
    assert torch.isfinite(one_patch).all()
    assert one_patch.abs().max() > 0.1


def test_shapes_of_levels_are_known_before_anything_is_encoded(tokens):
    assert LEVELS == ("pooled", "roi", "connectivity", "token")
    flat = tokens.flatten(1, 2)
    for level in LEVELS:
        assert pool(flat, level, (R, P)).shape[1:] == pooled_shape(level, (R, P), D)
    assert pooled_shape("connectivity", (R, P), D) == (R * (R - 1) // 2,)
