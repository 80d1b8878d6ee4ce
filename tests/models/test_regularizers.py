"""Regularizers against independent formulas, and what they do to features that collapse."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from src.models.regularizers import COVARIANCE, between_clips, draw_directions, sigreg, vicreg

TOKENS, WIDTH, CLIPS, KEPT = 12, 6, 5, 7


def draw(seed: int = 0, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features ``[B, K, D]`` and their tokens: positions far apart, clips ``scale`` apart."""
    generator = np.random.default_rng(seed)
    masks = np.stack([generator.permutation(TOKENS)[:KEPT] for _ in range(CLIPS)])
    positions = 10 * generator.normal(size=(TOKENS, WIDTH))
    noise = (
        scale * generator.normal(size=(CLIPS, KEPT, WIDTH)) @ generator.normal(size=(WIDTH,) * 2)
    )
    return torch.tensor(positions[masks] + noise), torch.tensor(masks)


def by_position(features: torch.Tensor, masks: torch.Tensor) -> list[np.ndarray]:
    """Features at each position that several clips have."""
    found = [features[masks == token].numpy() for token in range(TOKENS)]
    return [values for values in found if len(values) > 1]


def test_deviations_have_the_variance_at_a_fixed_position():
    features, masks = draw()
    deviation, shared = between_clips(features, masks, TOKENS)
    assert 0 < shared.sum() < CLIPS * KEPT
    assert not deviation[shared == 0].any()
    for token in range(TOKENS):
        here = masks.flatten() == token
        values = features.flatten(0, 1)[here].numpy()
        assert shared[here].bool().tolist() == [len(values) > 1] * len(values)
        if len(values) > 1:
            found = deviation[here].square().mean(0)
            np.testing.assert_allclose(found, values.var(axis=0, ddof=1))


def test_vicreg_is_that_of_its_paper():
    features, masks = draw(scale=0.3)
    pooled = np.concatenate(
        [(g - g.mean(0)) * math.sqrt(len(g) / (len(g) - 1)) for g in by_position(features, masks)]
    )
    covariance = np.cov(np.vstack([pooled, -pooled]).T, ddof=0)  # of mean 0
    hinge = np.maximum(0, 1 - np.sqrt(np.diag(covariance) + 1e-4)).mean()
    others = (covariance**2).sum() - (np.diag(covariance) ** 2).sum()
    assert 0 < hinge < 1
    expected = hinge + COVARIANCE * others / WIDTH
    assert vicreg(*between_clips(features, masks, TOKENS)).item() == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1e-6, 0.2, 0.4])
def test_sigreg_is_the_integral_in_closed_form(scale):
    """Epps and Pulley with weight exp(-t^2 / 2): sums of Gaussians over pairs and samples."""
    features, masks = draw(scale=scale)
    deviation, shared = between_clips(features, masks, TOKENS)
    directions = draw_directions(WIDTH, seed=1, step=2, device=torch.device("cpu"))
    projected = (deviation[shared > 0] @ directions.double()).numpy()  # [n, S]
    pairs = np.exp(-((projected[:, None] - projected[None]) ** 2) / 2).mean((0, 1))
    singles = np.exp(-(projected**2) / 4).mean(0) * math.sqrt(2)
    expected = math.sqrt(2 * math.pi) * (pairs - singles + 1 / math.sqrt(3))
    found = sigreg(deviation, shared, directions).item()
    assert found == pytest.approx(expected.mean(), rel=0.01, abs=1e-4)


def test_sigreg_orders_samples_as_a_test_of_normality_does():
    generator = np.random.default_rng(0)
    shared, directions = torch.ones(2000), torch.eye(1)
    normal = generator.normal(size=2000)
    samples = {
        "normal": normal,
        "uniform": generator.uniform(-1, 1, 2000) * math.sqrt(3),
        "exponential": generator.exponential(size=2000) - 1,
        "wide": 3 * normal,
    }
    distance = {
        name: sigreg(torch.tensor(values, dtype=torch.float32)[:, None], shared, directions).item()
        for name, values in samples.items()
    }
    assert distance["normal"] < 2e-3 < 2 * distance["normal"] + 2e-3
    for name in ("uniform", "exponential", "wide"):
        assert stats.kstest(samples[name], "norm").pvalue < 1e-3
        assert distance[name] > 5 * distance["normal"], name


@pytest.mark.parametrize("name", ["vicreg", "sigreg"])
def test_a_collapsed_batch_is_pushed_apart_and_positions_are_left_alone(name):
    features, masks = draw(scale=0.01)
    features.requires_grad_()
    directions = draw_directions(WIDTH, seed=0, step=0, device=torch.device("cpu"))

    def penalty(values: torch.Tensor) -> torch.Tensor:
        deviation, shared = between_clips(values, masks, TOKENS)
        if name == "vicreg":
            return vicreg(deviation, shared)
        return sigreg(deviation, shared, directions)

    penalty(features).backward()
    moved = (features - 0.1 * features.grad / features.grad.abs().max()).detach()
    before = between_clips(features.detach(), masks, TOKENS)[0].square().sum()
    assert between_clips(moved, masks, TOKENS)[0].square().sum() > 2 * before
    assert penalty(moved) < penalty(features)
    shift = torch.randn(TOKENS, WIDTH, dtype=torch.float64)[masks]
    torch.testing.assert_close(penalty(features + shift), penalty(features), rtol=1e-6, atol=1e-9)
    for token in range(TOKENS):
        assert features.grad[masks == token].sum(0).abs().max() < 1e-12


def test_directions_are_unit_vectors_that_depend_on_seed_and_step_alone():
    cpu = torch.device("cpu")
    first, again = (draw_directions(WIDTH, seed=1, step=2, device=cpu) for _ in range(2))
    torch.testing.assert_close(first.norm(dim=0), torch.ones(first.shape[1]))
    assert torch.equal(first, again)
    for seed, step in ((1, 3), (2, 2), (2, 1)):
        assert not torch.equal(first, draw_directions(WIDTH, seed=seed, step=step, device=cpu))
