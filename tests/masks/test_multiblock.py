"""Mode multiblock: rectangles as I-JEPA draws them, and no token favoured."""

from dataclasses import replace

import numpy as np
import pytest

from src.masks.collator import MaskCollator
from src.masks.multiblock import MultiblockMasks, Rectangles, _choose
from src.utils.errors import UserError
from tests.masks.conftest import numbered, on_grid

RNG = np.random.default_rng(0)


def by_hand(blocks: Rectangles, layout: int, grid: tuple[int, int]) -> np.ndarray:
    """The union of a layout's rectangles, [R, P]."""
    union = np.zeros(grid, dtype=bool)
    for top, left in zip(blocks.top[layout], blocks.left[layout], strict=True):
        union[top : top + blocks.height, left : left + blocks.width] = True
    return union


@pytest.mark.parametrize("grid", [(450, 10), (26, 4), (31, 1), (12, 9)])
def test_layouts_count_their_tokens(grid):
    for seed in range(5):
        layouts = MultiblockMasks(*grid).sizes(np.random.default_rng(seed))
        filled = layouts.targets.fill(*grid)
        for i, (n_context, n_targets) in enumerate(
            zip(layouts.n_context, layouts.n_targets, strict=True)
        ):
            targets = by_hand(layouts.targets, i, grid)
            context = by_hand(layouts.context, i, grid) & ~targets
            assert (context.sum(), targets.sum()) == (n_context, n_targets)
            assert np.array_equal(filled[i].T, targets)


@pytest.mark.parametrize("grid", [(450, 10), (122, 4), (40, 40)])
def test_blocks_have_the_configured_sizes_and_shapes(grid):
    """Aspect ratio 1 is the grid's shape: on a square grid, I-JEPA's squares."""
    mode = MultiblockMasks(*grid)
    shapes = []
    for seed in range(200):
        layouts = mode.sizes(np.random.default_rng(seed))
        context, targets = layouts.context, layouts.targets
        assert context.top.shape[1] == 1
        assert targets.top.shape[1] == 4
        shapes.append((context.height, context.width, targets.height, targets.width))
    height, width, rows, columns = (
        share / n for share, n in zip(np.transpose(shapes), (*grid, *grid), strict=True)
    )
    rounding = 0.5 / grid[1] + 0.5 / grid[0]
    assert (np.abs(height - width) <= rounding).all()
    assert (height >= 0.85**0.5 - rounding).all()
    assert (rows * columns <= (0.2**0.5 + rounding) ** 2).all()
    assert (rows >= (0.15 * 0.75) ** 0.5 - rounding).all()
    assert (rows <= (0.2 * 1.5) ** 0.5 + rounding).all()
    assert (columns <= (0.2 / 0.75) ** 0.5 + rounding).all()
    assert (columns >= (0.15 / 1.5) ** 0.5 - rounding).all()
    assert np.mean(rows * columns) == pytest.approx(0.175, rel=0.1)


def test_context_and_targets_are_the_blocks_but_for_a_few_tokens():
    grid = (450, 10)
    collator = MaskCollator(MultiblockMasks(*grid), seed=2)
    given_up = []
    for step in range(30):
        layouts = collator.sizes(step)
        unions = layouts.targets.fill(*grid).transpose(0, 2, 1)
        masks = collator.sample(4, step)
        targets, context = (on_grid(t, collator) for t in (masks.targets, masks.context))
        for sample in range(4):
            inside = ~((targets[sample] == 1) & ~unions).any(axis=(1, 2))
            inside &= ~((context[sample] == 1) & unions).any(axis=(1, 2))
            assert inside.any(), "the targets lie in a layout's union and the context does not"
            of = np.flatnonzero(inside)[unions[inside].sum(axis=(1, 2)).argmin()]
            rows, columns = context[sample].any(axis=1), context[sample].any(axis=0)
            assert rows.sum() <= layouts.context.height
            assert columns.sum() <= layouts.context.width
            given_up.append(1 - masks.targets.shape[1] / layouts.n_targets[of])
    assert 0 < np.mean(given_up) < 0.1
    assert max(given_up) < 0.4


def test_every_token_is_given_up_with_the_same_probability():
    """For all starts of the systematic sample, each token is chosen equally often."""
    for n_chosen in (1, 7, 12, 17, 18):
        present = np.zeros((2, 5, 6), dtype=bool)
        present.reshape(2, -1)[0, RNG.permutation(30)[:18]] = True
        present.reshape(2, -1)[1, RNG.permutation(30)[:25]] = True
        chosen = np.zeros((2, 30), dtype=int)
        for start in range(18 * 25):
            words = np.array([start, start], dtype=np.uint64)
            tokens = _choose(present, n_chosen, words)
            assert all(len(np.unique(row)) == n_chosen for row in tokens)
            np.add.at(chosen, (np.arange(2)[:, None], tokens), 1)
        by_token = present.transpose(0, 2, 1).reshape(2, -1)
        for sample, n in enumerate((18, 25)):
            assert (chosen[sample, by_token[sample]] * n == n_chosen * 18 * 25).all()
            assert not chosen[sample, ~by_token[sample]].any()


@pytest.mark.parametrize("sample", [0, 3])
def test_a_sample_is_distributed_as_if_drawn_alone(sample):
    """Shares of rows and columns match blocks placed independently; every patch is reached."""
    grid = n_rois, n_patches = 20, 8
    mode = MultiblockMasks(*grid, (0.9, 0.9), (0.18, 0.18), (1.0, 1.0))
    collator = MaskCollator(mode, seed=4)

    def shares(context: np.ndarray, targets: np.ndarray) -> np.ndarray:
        parts = [part.sum(axis=axis) / part.sum() for part in (context, targets) for axis in (0, 1)]
        return np.concatenate(parts)

    drawn = []
    for step in range(3000):
        masks = collator.sample(4, step)
        both = (on_grid(t[[sample]], collator)[0] for t in (masks.context, masks.targets))
        drawn.append(shares(*both))
    alone = []
    height, width, rows, columns = 19, 8, 8, 3  # .9 ** .5 and .18 ** .5 of the grid, rounded
    while len(alone) < 10_000:
        targets, context = np.zeros((2, *grid), dtype=bool)
        for _ in range(4):
            top, left = RNG.integers(n_rois - rows + 1), RNG.integers(n_patches - columns + 1)
            targets[top : top + rows, left : left + columns] = True
        top, left = RNG.integers(n_rois - height + 1), RNG.integers(n_patches - width + 1)
        context[top : top + height, left : left + width] = True
        context &= ~targets
        alone.append(shares(context, targets))
    drawn, alone = np.array(drawn), np.array(alone)
    error = np.hypot(drawn.std(axis=0) / len(drawn) ** 0.5, alone.std(axis=0) / len(alone) ** 0.5)
    assert (np.abs(drawn.mean(axis=0) - alone.mean(axis=0)) <= 4 * error).all()
    assert (drawn.mean(axis=0) > 0).all()


def test_samples_of_a_batch_have_layouts_of_their_own():
    collator = MaskCollator(MultiblockMasks(60, 10))
    for step in range(10):
        masks = collator.sample(16, step)
        targets = on_grid(masks.targets, collator).reshape(16, -1)
        alike = (targets[:, None] & targets[None]).sum(axis=2) / masks.targets.shape[1]
        assert np.median(alike) < 0.9
        assert len(np.unique(targets, axis=0)) > 8


def test_allow_overlap_leaves_the_context_block_whole():
    apart = MaskCollator(MultiblockMasks(60, 10))
    overlapping = MaskCollator(MultiblockMasks(60, 10, allow_overlap=True))
    for step in range(20):
        _, [context], [targets] = overlapping(numbered(3, step))
        alone = apart.sample(3, step)
        assert np.array_equal(targets, alone.targets)
        block = on_grid(context.numpy(), apart)
        layouts = apart.sizes(step)
        assert block.max() == 1
        assert (block.any(axis=2).sum(axis=1) == layouts.context.height).all()
        assert (block.any(axis=1).sum(axis=1) == layouts.context.width).all()
        assert context.shape[1] == layouts.context.height * layouts.context.width
        assert (on_grid(alone.context, apart) <= block).all()


def test_layouts_that_leave_less_than_min_keep_are_not_used():
    free, bound = (MaskCollator(MultiblockMasks(60, 10, min_keep=n)) for n in (4, 220))
    assert min(free.sample(1, step).context.shape[1] for step in range(300)) < 220
    assert min(bound.sample(1, step).context.shape[1] for step in range(300)) >= 220


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multiblock_context_scale": (0.9, 0.8)}, r"mask\.multiblock_context_scale is"),
        ({"multiblock_target_scale": (0.0, 0.0)}, r"mask\.multiblock_target_scale.*above 0"),
        ({"multiblock_aspect_ratio": (0.0, 1.0)}, r"mask\.multiblock_aspect_ratio is \[0\.0, 1"),
        ({"multiblock_aspect_ratio": (2.0, 1.0)}, r"mask\.multiblock_aspect_ratio is \[2\.0, 1"),
        ({"min_keep": 400}, r"mask\.min_keep is 400.*only 0 % of the layouts"),
        ({"multiblock_target_scale": (0.9, 1.0)}, r"is 4: .*lower .*mask\.multiblock_target_sc"),
    ],
)
def test_impossible_settings_are_user_errors(options, message):
    with pytest.raises(UserError, match=message):
        replace(MultiblockMasks(60, 10), **options)
