"""Learning monitors against their definitions, on networks whose answer is known."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from src import monitors
from src.helper import Networks
from src.models.jepa import jepa_targets
from src.models.layers import apply_masks

SAMPLES, ROIS, PATCHES, WIDTH = 12, 5, 2, 8
TOKENS = ROIS * PATCHES
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


def batches(size: int = 5) -> list[torch.Tensor]:
    return list(torch.arange(SAMPLES).float().reshape(SAMPLES, 1, 1, 1).split(size))


def measure(features: torch.Tensor, predictor: nn.Module, size: int = 5) -> dict[str, float]:
    networks = Networks(Lookup(features), predictor, Lookup(features))
    return monitors.measure(networks, batches(size), MASKS, torch.device("cpu"), nullcontext)


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
    assert "not measured" in monitors.verdict(values, values)


def measure_targets(features: torch.Tensor, predictor: nn.Module) -> dict[str, float]:
    networks = Networks(Lookup(features), predictor, Lookup(features))
    numbers = torch.arange(len(features)).float().reshape(-1, 1, 1, 1)
    return monitors.measure(networks, [numbers], MASKS, torch.device("cpu"), nullcontext)


def test_a_predictor_that_knows_everything_has_r2_one(features, targets):
    class Oracle(nn.Module):
        def forward(self, x, masks_x, masks):
            sample = [  # what the encoder saw tells which sample it is
                int((features[:, masks_x[0, 0]] - row[0]).abs().sum(-1).argmin()) for row in x
            ]
            return apply_masks(targets[sample], masks)

    assert measure(features, Oracle())["r2"] == pytest.approx(1.0, abs=1e-5)


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
    assert measure(features, predictor, 1) == pytest.approx(measure(features, predictor, 12))


def test_a_collapse_shows_in_the_variance_where_rank_and_share_hide_it(features):
    """Spec 9: RankMe may rise while everything shrinks to the position mean."""
    mean = features.mean(0)
    shrunk = mean + (features - mean) * 1e-3
    before, after = (measure(f, Answer(f.mean(0))) for f in (features, shrunk))
    assert after["variance"] < 1e-4 * before["variance"]
    assert after["rankme"] > 0.8 * before["rankme"]


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ({"r2": 0.1, "variance": 0.2}, "learning: held-out R2"),
        ({"r2": -0.1, "variance": 0.2}, "NOT LEARNING: held-out R2 is -0.100"),
        ({"r2": float("nan"), "variance": 0.2}, "NOT LEARNING"),
        ({"r2": 0.1, "variance": 0.002}, "collapsed"),
    ],
)
def test_the_last_line_says_what_the_numbers_mean(last, words):
    first = {"r2": -1.0, "variance": 0.3, "rankme": 5.0, "variance_share": 0.5}
    assert words in monitors.verdict(first, {**first, **last})
