"""Latent monitors against their definitions, on networks whose answer is known."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from src.config import config_from_dict
from src.helper import Networks, init_collator
from src.masks.modes import MODES
from src.models.centered_targets import CenteredTargets
from src.models.jepa import jepa_targets
from src.models.layers import apply_masks
from src.monitors import latent

SAMPLES, TOKENS, WIDTH = 12, 10, 8
MASKS = [
    (torch.tensor([0, 1, 2, 3]), torch.tensor([5, 8])),
    (torch.tensor([2, 3, 6]), torch.tensor([0, 9, 4])),
]


class Lookup(nn.Module):
    """A target encoder that gives the features it holds for the sample whose number it is sent."""

    def __init__(self, features: torch.Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: torch.Tensor, masks: torch.Tensor | None = None) -> torch.Tensor:
        out = self.features[x.flatten(1)[:, 0].long()]
        return out if masks is None else apply_masks(out, masks)


class Answer(nn.Module):
    """A predictor that says ``table`` ``[N, D]`` at the target positions, plus the truth's part."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, x: torch.Tensor, masks_x: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        return apply_masks(self.table.expand(len(masks), -1, -1), masks)


@pytest.fixture
def features() -> torch.Tensor:
    torch.manual_seed(0)
    positions = 2 * torch.randn(TOKENS, WIDTH)
    return positions + torch.randn(SAMPLES, TOKENS, WIDTH)


@pytest.fixture
def targets(features) -> torch.Tensor:
    numbers = torch.arange(SAMPLES).reshape(SAMPLES, 1, 1, 1)
    return jepa_targets(Lookup(features), numbers.float())


def batches(samples: range, size: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Samples as their numbers, each of a person of its own."""
    numbers = torch.tensor(list(samples))
    clips = numbers.float().reshape(-1, 1, 1, 1)
    return list(zip(clips.split(size), numbers.split(size), strict=True))


def measure(features: torch.Tensor, predictor: nn.Module, size: int = 5) -> dict[str, float]:
    networks = Networks(Lookup(features), predictor, Lookup(features))
    every = batches(range(SAMPLES), size)
    return latent.measure(networks, every, every, MASKS, torch.device("cpu"), nullcontext)


def test_predictions_of_centred_targets_are_measured_as_what_they_stand_for(features, targets):
    """A predictor that is right has R2 1; one that says 0 knows the mean of these samples only."""
    centering = CenteredTargets(TOKENS, WIDTH)
    every = torch.arange(TOKENS).expand(SAMPLES, -1)
    for _ in range(2):
        centering(targets, every)
        centering.update(distributed=False)
    centred = centering(targets, every)

    class Right(nn.Module):
        def forward(self, x: torch.Tensor, masks_x: torch.Tensor, masks: torch.Tensor):
            return apply_masks(centred, masks)  # all samples are one batch

    nothing = Answer(torch.zeros(TOKENS, WIDTH))
    for predictor, r2 in ((Right(), 1.0), (nothing, 1 / SAMPLES)):
        networks = Networks(Lookup(features), predictor, Lookup(features))
        networks.centering = centering
        batch = batches(range(SAMPLES), SAMPLES)
        values = latent.measure(networks, batch, batch, MASKS, torch.device("cpu"), nullcontext)
        uncentred = Networks(Lookup(features), predictor, Lookup(features))
        before = latent.measure(uncentred, batch, batch, MASKS, torch.device("cpu"), nullcontext)
        assert values["r2"] == pytest.approx(r2, abs=1e-4)
        assert before["r2"] < 0
        for name in ("variance", "variance_share", "rankme"):
            assert values[name] == before[name]


def test_a_predictor_that_knows_only_positions_has_r2_zero():
    """With the true mean of each position, which the few held-out samples only estimate."""
    torch.manual_seed(1)
    positions = torch.randn(TOKENS, WIDTH)
    many = jepa_targets(nn.Identity(), positions + 0.7 * torch.randn(20_000, TOKENS, WIDTH))
    true_mean = many.mean(0)
    values = [
        measure_targets(many[k * SAMPLES : (k + 1) * SAMPLES], Answer(true_mean))["r2"]
        for k in range(200)
    ]
    assert sum(values) / len(values) == pytest.approx(0.0, abs=0.01)


def test_one_sample_measures_nothing():
    values = measure_targets(torch.randn(1, TOKENS, WIDTH), Answer(torch.zeros(TOKENS, WIDTH)))
    assert all(value != value for value in values.values())


def measure_targets(features: torch.Tensor, predictor: nn.Module) -> dict[str, float]:
    networks = Networks(Lookup(features), predictor, Lookup(features))
    every = batches(range(len(features)), len(features))
    return latent.measure(networks, every, every, MASKS, torch.device("cpu"), nullcontext)


def test_a_predictor_that_knows_everything_has_r2_one(features, targets):
    class Finds(nn.Module):
        def forward(self, x, masks_x, masks):
            sample = [  # what the encoder saw tells which sample it is
                int((features[:, masks_x[0, 0]] - row[0]).abs().sum(-1).argmin()) for row in x
            ]
            return apply_masks(targets[sample], masks)

    assert measure(features, Finds())["r2"] == pytest.approx(1.0, abs=1e-5)


def test_a_wrong_predictor_is_below_zero(features, targets):
    assert measure(features, Answer(targets.mean(0) + 1.0))["r2"] < -0.5


def test_variance_and_share_are_those_of_their_definition(features, targets):
    values = measure(features, Answer(targets.mean(0)))
    between = targets.var(0).mean()
    total = targets.var((0, 1), unbiased=False).sum() / WIDTH
    assert values["variance"] == pytest.approx(between.item(), rel=1e-4)
    assert values["variance_share"] == pytest.approx(
        (targets.var(0, unbiased=False).mean() / total).item(), rel=1e-4
    )


def test_rankme_is_the_entropy_of_the_singular_values(features, targets):
    values = measure(features, Answer(targets.mean(0)))
    singular = torch.linalg.svdvals((targets - targets.mean(0)).flatten(0, 1))
    share = singular / singular.sum()
    expected = torch.exp(-(share * share.log()).nansum())
    # LayerNorm leaves D - 1 dimensions: the last singular value is rounding.
    assert values["rankme"] == pytest.approx(expected.item(), rel=1e-3)


def test_the_batch_size_changes_nothing(features, targets):
    predictor = Answer(targets.mean(0) + 0.1)
    assert measure(features, predictor, 1) == pytest.approx(
        measure(features, predictor, 12), rel=1e-5
    )


def test_a_collapse_shows_in_the_variance_where_rank_and_share_hide_it(features):
    """Spec 9: RankMe may rise while everything shrinks to the position mean."""
    mean = features.mean(0)
    shrunk = mean + (features - mean) * 1e-3
    before, after = (measure(f, Answer(f.mean(0))) for f in (features, shrunk))
    assert after["variance"] < 1e-4 * before["variance"]
    assert after["rankme"] > 0.8 * before["rankme"]


# --- clips with traits ---------------------------------------------------------------------------

TRAINING, HELD_OUT = range(100, 400), range(60)


class Traits:
    """Two thousand clips: position mean, a constant per clip, and a signal at each token.

    The encoder's tokens hold the constant, and ``knows`` of the signal at the same token.
    """

    def __init__(self, knows: float = 0.0) -> None:
        torch.manual_seed(2)
        shape = (2000, TOKENS, WIDTH)
        raw = torch.randn(TOKENS, WIDTH) + 0.5 * torch.randn(2000, 1, WIDTH) + torch.randn(shape)
        self.targets = jepa_targets(nn.Identity(), raw)
        self.positions = self.targets.mean(0)
        left = self.targets - self.positions
        self.constants = left.mean(1)  # [2000, D]
        self.signal = left - self.constants[:, None]
        self.context = self.constants[:, None] + knows * self.signal

    def measure(self, predictor: nn.Module, size: int = 7) -> dict[str, float]:
        networks = Networks(Lookup(self.context), predictor, Lookup(self.targets))
        training, held_out = batches(TRAINING, size), batches(HELD_OUT, size)
        device = torch.device("cpu")
        return latent.measure(networks, training, held_out, MASKS, device, nullcontext)


class PositionsAndTrait(nn.Module):
    """Predicts the true mean of each position plus what the clip's context tokens share."""

    def __init__(self, traits: Traits) -> None:
        super().__init__()
        self.positions = traits.positions

    def forward(self, x: torch.Tensor, masks_x: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        table = self.positions.expand(len(masks), -1, -1)
        return apply_masks(table, masks) + x.mean(1, keepdim=True)


class Oracle(nn.Module):
    """Finds the clip by its context, and predicts its targets."""

    def __init__(self, traits: Traits) -> None:
        super().__init__()
        self.traits = traits

    def forward(self, x: torch.Tensor, masks_x: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        context = self.traits.context[:, masks_x[0, 0]]
        clips = [int((context - row[0]).abs().sum(-1).argmin()) for row in x]
        return apply_masks(self.traits.targets[clips], masks)


def test_knowing_each_clips_constant_beats_the_position_mean_and_not_the_clip_constant():
    traits = Traits()
    values = traits.measure(PositionsAndTrait(traits))
    assert values["r2"] > 0.1
    assert values["r2_clip_constant"] == pytest.approx(0.0, abs=0.01)
    assert values["r2_clip_constant"] <= 0
    assert values["r2_swapped"] < -0.1


def test_a_predictor_that_ignores_its_context_scores_the_same_with_anothers():
    traits = Traits()
    values = traits.measure(Answer(traits.positions + 0.1))
    assert values["r2_swapped"] == pytest.approx(values["r2"], abs=1e-6)


def test_a_predictor_that_knows_the_signal_beats_all_references():
    traits = Traits(knows=1.0)
    values = traits.measure(Oracle(traits))
    assert values["r2"] == pytest.approx(1.0, abs=1e-5)
    assert values["r2_clip_constant"] == pytest.approx(1.0, abs=1e-5)
    assert values["r2_swapped"] < -0.5


def test_the_clip_constant_is_fitted_to_training_clips_only():
    """Where constant and context are related the other way in training, it is of no use."""
    traits = Traits()
    traits.context[HELD_OUT.stop :] *= -1
    values = traits.measure(Answer(traits.positions))
    assert values["r2"] == pytest.approx(0.0, abs=0.02)
    assert values["r2_clip_constant"] > 0.1
    fitted = latent.fit_clip_constant(
        Networks(Lookup(traits.context), nn.Identity(), Lookup(traits.targets)),
        batches(TRAINING),
        MASKS,
        torch.device("cpu"),
        nullcontext,
    )
    assert fitted.diagonal().mean() < -0.5


def test_the_clip_constant_is_the_reference_of_its_definition():
    """By hand: mean at each position plus constant, the error corrected by S / (S - 1)."""
    traits = Traits(knows=0.3)
    prediction = traits.positions + 0.2
    values = traits.measure(Answer(prediction))
    networks = Networks(Lookup(traits.context), nn.Identity(), Lookup(traits.targets))
    fitted = latent.fit_clip_constant(
        networks, batches(TRAINING), MASKS, torch.device("cpu"), nullcontext
    ).float()
    held_out = slice(HELD_OUT.start, HELD_OUT.stop)
    n, error, reference, positions = len(HELD_OUT), 0.0, 0.0, 0.0
    for context, target in MASKS:
        targets = traits.targets[held_out][:, target]
        left = targets - (traits.context[held_out][:, context].mean(1) @ fitted)[:, None]
        reference += (left - left.mean(0)).square().sum() * n / (n - 1)
        positions += (targets - targets.mean(0)).square().sum() * n / (n - 1)
        error += (targets - prediction[target]).square().sum()
    assert values["r2_clip_constant"] == pytest.approx((1 - error / reference).item(), abs=1e-4)
    assert values["r2"] == pytest.approx((1 - error / positions).item(), abs=1e-4)


@pytest.mark.parametrize("size", [1, 7, 60])
def test_each_clip_is_swapped_for_the_one_before_in_any_batches(size):
    traits = Traits()
    values = traits.measure(PositionsAndTrait(traits), size)
    held_out = slice(HELD_OUT.start, HELD_OUT.stop)
    n, error, positions = len(HELD_OUT), 0.0, 0.0
    for context, target in MASKS:
        targets = traits.targets[held_out][:, target]
        own = traits.context[held_out][:, context].mean(1, keepdim=True)
        error += (targets - traits.positions[target] - own.roll(1, 0)).square().sum()
        positions += (targets - targets.mean(0)).square().sum() * n / (n - 1)
    assert values["r2_swapped"] == pytest.approx((1 - error / positions).item(), abs=1e-4)


def test_fixed_masks_show_every_mode():
    values = {"meta": {"mask_mode": "mixed", "seed": 3}, "mask": {"mixed_modes": list(MODES)}}
    config = config_from_dict(values, "a test")
    for number, name in enumerate(MODES):
        masks = latent.fixed_masks(config)[number]
        alone = config_from_dict({"meta": {"mask_mode": name, "seed": 3}}, "a test")
        drawn = init_collator(alone, seed=4).examples(len(MODES))[number]
        assert torch.equal(masks[0], torch.from_numpy(drawn.context[0]))
        assert torch.equal(masks[1], torch.from_numpy(drawn.targets[0]))


def test_masks_are_fixed_and_other_than_those_of_the_training():
    config = config_from_dict({}, "a test")
    first, again = latent.fixed_masks(config), latent.fixed_masks(config)
    training = init_collator(config, seed=config.meta.seed)
    for step, (masks, same) in enumerate(zip(first, again, strict=True)):
        assert all(torch.equal(*pair) for pair in zip(masks, same, strict=True))
        drawn = torch.from_numpy(training.sample(1, step).context[0])
        assert not torch.equal(masks[0], drawn)
