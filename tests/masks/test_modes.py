"""What holds for every mode of masking, and what each of them promises."""

from dataclasses import replace

import numpy as np
import pytest

from src.masks.batch import MaskMode
from src.masks.collator import MaskCollator
from src.masks.forecast import ForecastMasks
from src.masks.modes import MODES
from src.masks.roi import RoiMasks
from src.masks.spatiotemporal import SpatiotemporalMasks
from src.utils.errors import UserError
from tests.masks.conftest import Uniform, numbered, on_grid, parts

GRIDS = [(450, 10), (122, 4), (94, 10), (31, 3), (20, 2)]  # ROIs, patches
VARIED = {  # fractions that leave something to be drawn
    "spatiotemporal": {},
    "multiblock": {},
    "roi": {"roi_visible_scale": (0.2, 0.6), "roi_target_scale": (0.1, 0.4)},
    "forecast": {"forecast_roi_scale": (0.3, 1.0)},
}


def make_mode(name: str, grid: tuple[int, int], **options) -> MaskMode:
    return MODES[name](*grid, **options)


def test_every_mode_is_tested():
    assert set(VARIED) == set(MODES)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", MODES)
def test_context_and_targets_are_disjoint_and_hold_no_token_twice(name, grid):
    collator = MaskCollator(make_mode(name, grid, **VARIED[name]), seed=1)
    sizes = set()
    for step in range(300):
        masks = collator.sample(4, step)
        for tokens in parts(masks):
            assert tokens.dtype == np.int64
            assert len(tokens) == 4, "as many tokens in each sample"
        assert sum(on_grid(tokens, collator) for tokens in parts(masks)).max() == 1
        assert masks.targets.shape[1] >= 1
        assert masks.context.shape[1] >= 4, "min_keep"
        sizes.add((masks.context.shape[1], masks.targets.shape[1]))
    assert len(sizes) > 1, "sizes are drawn for each step"


@pytest.mark.parametrize(("name", "smallest"), [("roi", 12 * 4), ("forecast", 18 * 3)])
def test_min_keep_may_be_the_smallest_context_and_no_more(name, smallest):
    collator = MaskCollator(make_mode(name, (60, 4), **VARIED[name], min_keep=smallest))
    assert min(collator.sample(1, step).context.shape[1] for step in range(300)) == smallest
    with pytest.raises(UserError, match=rf"mask\.min_keep is {smallest + 1}"):
        make_mode(name, (60, 4), **VARIED[name], min_keep=smallest + 1)


@pytest.mark.parametrize("name", MODES)
def test_a_draw_is_a_function_of_seed_step_and_rank(name):
    def draw(step: int, n: int = 4, **of_run) -> list[np.ndarray]:
        return list(parts(MaskCollator(make_mode(name, (94, 10)), **of_run).sample(n, step)))

    def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
        return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))

    for step in range(10):
        whole, first, second = draw(step, 8), draw(step), draw(step, rank=1)
        assert same(whole, [np.concatenate(pair) for pair in zip(first, second, strict=True)])
    assert same(draw(3, seed=5, rank=1), draw(3, seed=5, rank=1))
    for other in (draw(2, seed=5, rank=1), draw(3, seed=6, rank=1), draw(3, seed=5)):
        assert not same(draw(3, seed=5, rank=1), other)


@pytest.mark.parametrize("name", ["roi", "forecast"])
@pytest.mark.parametrize("sample", [0, 3])
def test_every_roi_is_equally_likely_context_and_target(name, sample):
    collator = MaskCollator(make_mode(name, (40, 4), **VARIED[name]), seed=2)
    context, targets = Uniform(40), Uniform(40)
    for step in range(2000):
        masks = collator.sample(4, step)
        context.add(on_grid(masks.context[[sample]], collator).any(axis=2))
        # in mode forecast all ROIs are targets: what differs is which of them are beta
        block = next(iter(masks.blocks.values()))
        targets.add(on_grid(block[[sample]], collator).any(axis=2))
    p_values = np.array([context.p_value, targets.p_value])
    assert ((p_values > 1e-3) & (p_values < 1 - 1e-3)).all(), p_values


@pytest.mark.parametrize("grid", GRIDS)
def test_roi_has_whole_rows_of_the_configured_number(grid):
    """Visible ROIs and target ROIs at all times, the numbers rounded down."""
    collator = MaskCollator(RoiMasks(*grid))
    masks = collator.sample(5, 0)
    context, targets = (on_grid(t, collator) for t in (masks.context, masks.targets))
    for counts, fraction in ((context, 0.4), (targets, 0.25)):
        rows = counts.any(axis=2)
        assert (counts == rows[:, :, None]).all()
        assert (rows.sum(axis=1) == int(fraction * grid[0] + 1e-9)).all()
    assert len(np.unique(context, axis=0)) > 1, "each sample has ROIs of its own"


@pytest.mark.parametrize("future", [1, 2, 3])
def test_forecast_shows_some_rois_at_first_and_asks_for_all_at_the_end(future):
    collator = MaskCollator(ForecastMasks(50, 4, forecast_patches=future))
    masks = collator.sample(5, 0)
    context, targets = (on_grid(t, collator) for t in (masks.context, masks.targets))
    visible = context.any(axis=2)
    assert (visible.sum(axis=1) == 25).all()
    assert (context[..., :-future] == visible[:, :, None]).all()
    assert not context[..., -future:].any()
    assert (targets[..., -future:] == 1).all()
    assert not targets[..., :-future].any()
    of_visible = on_grid(masks.blocks["beta"], collator).any(axis=2)
    assert np.array_equal(of_visible, visible)
    assert len(np.unique(visible, axis=0)) > 1, "each sample has ROIs of its own"


def test_all_rois_may_be_visible():
    whole = MaskCollator(RoiMasks(20, 4, (0.6, 0.6), (0.4, 0.4))).sample(2, 0)
    assert whole.context.shape[1] + whole.targets.shape[1] == 80
    whole = MaskCollator(ForecastMasks(20, 4, (1.0, 1.0))).sample(2, 0)
    assert whole.context.shape == (2, 60)
    assert [block.shape for block in whole.blocks.values()] == [(2, 20), (2, 0)]


def test_modes_alternate_by_step():
    modes = [RoiMasks(30, 4), SpatiotemporalMasks(30, 4), ForecastMasks(30, 4)]
    mixed = MaskCollator(*modes, seed=3, rank=1)
    for step in range(7):
        alone = MaskCollator(modes[step % 3], seed=3, rank=1).sample(2, step)
        drawn = mixed.sample(2, step)
        assert all(map(np.array_equal, parts(drawn), parts(alone)))
        _, [context], [targets] = mixed(numbered(2, step))
        assert np.array_equal(context, alone.context)
        assert np.array_equal(targets, alone.targets)


def test_examples_show_every_mode():
    modes = [RoiMasks(30, 4)] * 5 + [ForecastMasks(30, 4)]
    assert [len(MaskCollator(*modes[:n]).examples(4)) for n in (1, 4, 6)] == [4, 4, 6]
    kinds = {kind for masks in MaskCollator(*modes).examples(4) for kind in masks.blocks}
    assert kinds == {"alpha", "beta", "gamma"}


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        (
            RoiMasks(20, 4),
            {"roi_visible_scale": (0.4, 0.8)},
            r"mask\.roi_visible_scale is \[0\.4, 0\.8\] and mask\.roi_target_scale \[0\.25, 0\.25\]"
            ": at most 16 visible and 5 target ROIs are more than the 20",
        ),
        (RoiMasks(20, 4), {"roi_visible_scale": (0.5, 0.4)}, r"mask\.roi_visible_scale is"),
        (RoiMasks(20, 4), {"roi_target_scale": (0.0, 0.0)}, r"mask\.roi_target_scale.*above 0"),
        (RoiMasks(20, 4), {"min_keep": 33}, r"min_keep is 33.*8 ROIs x 4.*roi_visible_scale"),
        (RoiMasks(20, 4), {"n_rois": 1}, "1 visible and 1 target ROIs are more than the 1"),
        (
            ForecastMasks(20, 4),
            {"forecast_patches": 4},
            r"mask\.forecast_patches is 4: .*give 4 patches.*between 1 and 3",
        ),
        (ForecastMasks(20, 4), {"forecast_patches": 0}, r"mask\.forecast_patches is 0"),
        (ForecastMasks(20, 4), {"forecast_roi_scale": (0.5, 1.5)}, r"mask\.forecast_roi_scale is"),
        (ForecastMasks(20, 4), {"min_keep": 31}, r"is 31.*10 ROIs x 3.*mask\.forecast_roi_scale"),
    ],
)  # fmt: skip
def test_impossible_settings_are_user_errors(mode, options, message):
    with pytest.raises(UserError, match=message):
        replace(mode, **options)
