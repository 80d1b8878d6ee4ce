"""Running statistics of the targets against the same written out with numpy, number by number."""

import numpy as np
import pytest
import torch
from torch import nn

from src.models.centered_targets import EPS, RATE, CenteredTargets
from src.models.jepa import Networks
from src.models.objective import Objective

TOKENS, WIDTH = 6, 4


def draw(generator: np.random.Generator, clips: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Features ``[B, Q, D]`` and their tokens ``[B, Q]``; token 5 is never a target."""
    masks = np.stack([generator.permutation(TOKENS - 1)[:3] for _ in range(clips)])
    positions = np.arange(TOKENS)[masks][..., None] * [1.0, -2.0, 0.5, 3.0]
    features = positions + generator.normal(size=(clips, 3, WIDTH)) * [1.0, 0.1, 2.0, 0.5]
    return torch.tensor(features), torch.tensor(masks)


class ByHand:
    """Mean of each position and variance of each feature, in Python's floats."""

    def __init__(self) -> None:
        self.mean = [[0.0] * WIDTH for _ in range(TOKENS)]
        self.updates = [0] * TOKENS
        self.variance, self.variance_updates = [0.0] * WIDTH, 0

    def targets(self, features: np.ndarray, masks: np.ndarray) -> np.ndarray:
        out = np.zeros_like(features)
        for (b, q), token in np.ndenumerate(masks):
            for d in range(WIDTH):
                sd = (self.variance[d] + EPS) ** 0.5 if self.variance_updates else 1.0
                if self.updates[token]:
                    out[b, q, d] = (features[b, q, d] - self.mean[token][d]) / sd
        return out

    def update(self, micro_steps: list[tuple[np.ndarray, np.ndarray]]) -> None:
        found: dict[int, list[np.ndarray]] = {}
        deviations = []
        for features, masks in micro_steps:
            for (b, q), token in np.ndenumerate(masks):
                found.setdefault(token, []).append(features[b, q])
                if self.updates[token]:
                    deviations.append(features[b, q] - self.mean[token])
        for token, values in found.items():
            self.updates[token] += 1
            rate = max(RATE, 1 / self.updates[token])
            for d in range(WIDTH):
                new = float(np.mean([value[d] for value in values]))
                self.mean[token][d] += rate * (new - self.mean[token][d])
        if deviations:
            self.variance_updates += 1
            rate = max(RATE, 1 / self.variance_updates)
            for d in range(WIDTH):
                new = float(np.mean([value[d] ** 2 for value in deviations]))
                self.variance[d] += rate * (new - self.variance[d])


def test_targets_and_running_statistics_are_those_by_hand():
    """Two micro-steps to an optimizer step; beyond 1 / RATE updates, from where the rate stays."""
    generator, centering, by_hand = (
        np.random.default_rng(0),
        CenteredTargets(TOKENS, WIDTH),
        ByHand(),
    )
    for _ in range(round(1 / RATE) + 20):
        micro_steps = [draw(generator), draw(generator)]
        arrays = [(features.numpy(), masks.numpy()) for features, masks in micro_steps]
        for (features, masks), (values, tokens) in zip(micro_steps, arrays, strict=True):
            np.testing.assert_allclose(
                centering(features, masks), by_hand.targets(values, tokens), rtol=1e-3, atol=1e-3
            )
        centering.update(distributed=False)
        by_hand.update(arrays)
        np.testing.assert_allclose(centering.mean, by_hand.mean, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(centering.variance, by_hand.variance, rtol=1e-3)
        assert not centering.sums.any()
    assert centering.updates.tolist() == by_hand.updates
    assert max(by_hand.updates) > 1 / RATE
    assert by_hand.updates[5] == 0


def test_the_first_update_is_the_value_itself_and_nothing_is_asked_where_nothing_is_known():
    centering = CenteredTargets(TOKENS, WIDTH)
    features, masks = torch.randn(1, 2, WIDTH), torch.tensor([[4, 0]])
    assert not centering(features, masks).any()
    centering.update(distributed=False)
    assert torch.equal(centering.mean[[4, 0]], features[0])
    later = torch.randn(1, 3, WIDTH)
    targets = centering(later, torch.tensor([[4, 1, 0]]))
    torch.testing.assert_close(targets[0, 0], later[0, 0] - features[0, 0])
    assert not targets[0, 1].any()


def test_centred_targets_have_mean_zero_and_variance_one():
    generator, centering = np.random.default_rng(1), CenteredTargets(TOKENS, WIDTH)
    for _ in range(300):
        centering(*draw(generator, clips=16))
        centering.update(distributed=False)
    features, masks = draw(generator, clips=4000)
    targets = centering(features, masks)
    for token in range(TOKENS - 1):
        mean = targets[masks == token].mean(0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=0.15, rtol=0)
    variance = targets.flatten(0, 1).var(0)
    torch.testing.assert_close(variance, torch.ones_like(variance), atol=0.15, rtol=0)


def test_restored_targets_are_the_features_they_were_made_of():
    generator, centering = np.random.default_rng(2), CenteredTargets(TOKENS, WIDTH)
    for _ in range(20):
        features, masks = draw(generator)
        targets = centering(features, masks)
        restored = centering.restore(targets, masks)
        centering.update(distributed=False)
    torch.testing.assert_close(restored, features, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("targets", ["layernorm", "centered"])
def test_the_state_is_as_large_as_said(targets):
    """In the docstring, at the published size."""
    encoder = nn.Linear(2, 2)
    encoder.num_patches, encoder.embed_dim = 4500, 768
    networks = Networks(encoder, nn.Linear(2, 2), nn.Linear(2, 2), Objective(targets=targets))
    if targets == "layernorm":
        assert networks.centering is None
        return
    megabytes = {n: b.nbytes / 2**20 for n, b in networks.centering.named_buffers()}
    assert megabytes["mean"] == pytest.approx(13.2, abs=0.05)
    assert megabytes["sums"] == pytest.approx(13.2, abs=0.05)
    assert "sums" not in networks.centering.state_dict()
