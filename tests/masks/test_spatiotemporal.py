"""The masks keep the rules of method 6, whatever the grid and the settings."""

import numpy as np
import pytest
import torch
from scipy import stats

from src.masks.batch import MaskBatch
from src.masks.collator import MaskCollator
from src.utils.errors import UserError
from tests.masks.conftest import Uniform, make, numbered, on_grid, parts

GRIDS = [  # ROIs, frames, patch size
    (450, 160, 16),
    (122, 160, 16),
    (94, 160, 16),
    (450, 320, 16),
    (400, 128, 16),
    (122, 160, 8),
    (122, 32, 8),
    (31, 48, 16),
    (50, 16, 16),
]


def outer(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return rows[:, :, None] & columns[:, None, :]


def margin_of(n_patches: int) -> int:
    """Columns in each margin: the outer 30 % of the patches, rounded down."""
    return max(1, int(0.3 * n_patches + 1e-9)) if n_patches > 2 else 0


def margins_of(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The left and the right margin of a grid [B, R, P]."""
    margin = margin_of(counts.shape[2])
    return counts[..., :margin], counts[..., counts.shape[2] - margin :]


def assert_valid(masks: MaskBatch, collator: MaskCollator) -> None:
    context, alpha, beta, gamma = (on_grid(tokens, collator) for tokens in parts(masks))
    c_r, c_t = context.any(axis=2), context.any(axis=1)
    assert context.max() == 1
    assert np.array_equal(context == 1, outer(c_r, c_t))
    assert masks.context.shape[1] >= collator.modes[0].min_keep
    assert masks.targets.shape[1] >= 1

    assert (context + alpha + beta + gamma).max() == 1
    regions = (outer(~c_r, c_t), outer(c_r, ~c_t), outer(~c_r, ~c_t))
    for block, region in zip((alpha, beta, gamma), regions, strict=True):
        assert not block[~region].any()
    for block in (alpha, *margins_of(beta), *margins_of(gamma)):
        assert np.array_equal(block == 1, outer(block.any(axis=2), block.any(axis=1)))
    for left, right in (margins_of(beta), margins_of(gamma)):
        assert np.array_equal(left.sum(axis=(1, 2)), right.sum(axis=(1, 2)))
    if beta.any() and gamma.any():
        assert np.array_equal(beta.any(axis=1), gamma.any(axis=1)), "they share their columns"

    window = alpha.any(axis=1)
    edges = np.diff(window.astype(int), axis=1, prepend=0, append=0)
    assert (np.abs(edges).sum(axis=1) == 2).all(), "alpha's window is contiguous"
    margin = margin_of(window.shape[1])
    core = slice(margin, window.shape[1] - margin)
    assert not beta[..., core].any()
    assert not gamma[..., core].any()


@pytest.mark.parametrize("grid", GRIDS)
def test_invariants(grid):
    collator = make(grid, seed=1)
    for step in range(600):
        assert_valid(collator.sample(4, step), collator)


def test_invariants_on_a_grid_of_8_by_2():
    collator = make((8, 32, 16), min_keep=4)
    for step in range(2000):
        assert_valid(collator.sample(2, step), collator)


def test_invariants_under_random_settings():
    rng = np.random.default_rng(0)

    def scale(low: float, high: float) -> tuple[float, float]:
        return tuple(sorted(rng.uniform(low, high, 2).round(3).tolist()))

    valid = 0
    for _ in range(400):
        n_rois, n_patches = int(rng.integers(4, 60)), int(rng.integers(1, 45))
        options = {
            "enc_mask_scale": scale(0.3, 1.0),
            "pred_mask_R_scale": scale(0.05, 0.9),
            "pred_mask_T_scale": scale(0.0, 1.0),
            "pred_mask_T_roi_scale": scale(0.05, 1.0),
            "pred_mask_R_roi_scale": scale(0.0, 1.0),
        }
        try:
            collator = make((n_rois, n_patches, 1), min_keep=1, **options)
        except UserError:  # some draw would leave no context
            continue
        valid += 1
        for step in range(10):
            assert_valid(collator.sample(3, step), collator)
    assert valid > 200


@pytest.mark.parametrize(("grid", "min_keep"), [((450, 160, 16), 1500), ((122, 32, 8), 200)])
def test_min_keep_is_met_where_sizes_alone_would_not(grid, min_keep):
    free, bound = make(grid), make(grid, min_keep=min_keep)
    assert any(free.sample(1, step).context.shape[1] < min_keep for step in range(100))
    for step in range(600):
        assert_valid(bound.sample(2, step), bound)


def test_published_settings_give_the_published_numbers_of_tokens():
    collator = make()
    draws = [collator.sample(1, step) for step in range(4000)]
    assert np.mean([d.context.shape[1] for d in draws]) == pytest.approx(1250, rel=0.04)
    assert np.mean([d.targets.shape[1] for d in draws]) == pytest.approx(1100, rel=0.04)


def test_a_fraction_that_gives_a_whole_number_gives_all_of_it():
    """.29 * 100 is 28.999... in floating point."""
    sizes = make((100, 160, 16), pred_mask_R_scale=(0.29, 0.29)).sizes(0)
    assert sizes.alpha_rows == 29


@pytest.mark.parametrize("grid", [(450, 160, 16), (94, 160, 16), (122, 32, 8)])
def test_every_roi_is_equally_likely_in_every_block(grid):
    collator = make(grid, seed=2)
    tests = [Uniform(grid[0]) for _ in range(6)]
    for step in range(400):
        context, alpha, beta, gamma = (
            on_grid(tokens, collator) for tokens in parts(collator.sample(8, step))
        )
        blocks = (context, alpha, *margins_of(beta), *margins_of(gamma))
        for test, block in zip(tests, blocks, strict=True):
            test.add(block.any(axis=2))
    p_values = np.array([test.p_value for test in tests])
    assert ((p_values > 1e-3) & (p_values < 1 - 1e-3)).all(), p_values


@pytest.mark.parametrize("grid", [(20, 160, 16), (20, 320, 16), (20, 488, 8)])
@pytest.mark.parametrize("sample", [0, 3])
def test_every_column_of_a_margin_is_equally_likely(grid, sample):
    collator = make(grid, seed=8)
    margin = margin_of(collator.modes[0].n_patches)
    tests = [Uniform(margin) for _ in range(4)]
    for step in range(1500):
        masks = collator.sample(4, step)
        beta, gamma = (on_grid(tokens[[sample]], collator) for tokens in parts(masks)[2:])
        for test, block in zip(tests, (*margins_of(beta), *margins_of(gamma)), strict=True):
            test.add(block.any(axis=1))
    p_values = np.array([test.p_value for test in tests])
    assert ((p_values > 1e-3) & (p_values < 1 - 1e-3)).all(), p_values


def test_the_columns_of_a_margin_are_any_subset():
    """Of 2 columns out of 3, all pairs are equally likely, whatever the other margin has."""
    collator = make((20, 160, 16), seed=9, pred_mask_T_scale=(0.2, 0.2))
    counts = np.zeros((3, 3))
    for step in range(2000):
        sides = margins_of(on_grid(collator.sample(1, step).blocks["beta"], collator))
        left, right = (side.any(axis=(0, 1)) for side in sides)
        assert left.sum() == right.sum() == 2
        counts[left.argmin(), right.argmin()] += 1  # the column left out of each margin
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_rows_are_drawn_anew_for_each_margin():
    """Rows of the two margins, and those of alpha and gamma, meet as often as by chance."""
    collator = make((60, 160, 16), seed=10, pred_mask_T_scale=(0.2, 0.4))
    surplus = []
    for step in range(500):
        grids = (on_grid(tokens, collator) for tokens in parts(collator.sample(4, step)))
        context, alpha, beta, gamma = grids
        alpha_rows = alpha.any(axis=2)
        observed = context.any(axis=2)
        (beta_left, beta_right), (gamma_left, gamma_right) = (
            [side.any(axis=2) for side in margins_of(block)] for block in (beta, gamma)
        )
        pairs = (
            (beta_left, beta_right, observed),
            (gamma_left, gamma_right, ~observed),
            (gamma_left, alpha_rows, ~observed),
            (gamma_right, alpha_rows, ~observed),
        )
        surplus.append(
            [
                ((a & b).sum(axis=1) - a.sum(axis=1) * b.sum(axis=1) / pool.sum(axis=1)).mean()
                for a, b, pool in pairs
            ]
        )
    surplus = np.array(surplus)
    error = surplus.std(axis=0) / len(surplus) ** 0.5
    assert (np.abs(surplus.mean(axis=0)) <= 4 * error).all()


@pytest.mark.parametrize("grid", [(450, 160, 16), (20, 320, 16), (20, 32, 8), (20, 48, 16)])
def test_time_is_mirror_symmetric_and_every_patch_reachable(grid):
    collator = make(grid, seed=3)
    draws = [collator.sample(8, step) for step in range(1500)]
    for block in range(4):
        counts = (on_grid(parts(d)[block], collator) for d in draws)
        share = np.array([count.mean(axis=(0, 1)) for count in counts])  # [n, P]
        if block < 2:
            assert (share.mean(axis=0) > 0).all(), "every patch is context, and alpha, at times"
        difference = share - share[:, ::-1]
        error = difference.std(axis=0) / np.sqrt(len(draws))
        assert (np.abs(difference.mean(axis=0)) <= 4 * error).all()


@pytest.mark.parametrize(("n_patches", "sample"), [(10, 0), (10, 7), (20, 7)])
def test_a_sample_is_distributed_as_if_drawn_alone(n_patches, sample):
    """Context, alpha and margins match blocks placed independently of each other."""
    collator = make((40, n_patches, 1), seed=4)
    drawn = []
    for step in range(2000):
        masks = collator.sample(8, step)
        grids = (on_grid(tokens[[sample]], collator)[0] for tokens in parts(masks))
        context, alpha, beta, gamma = grids
        rows = context.any(axis=1).sum()
        blocks = (context, alpha, beta + gamma)
        columns = np.concatenate([block.any(axis=0) for block in blocks])
        drawn.append(np.append(columns, rows))
    drawn = np.array(drawn)

    rng, margin = np.random.default_rng(0), margin_of(n_patches)
    alone = np.zeros((15_000, 3 * n_patches + 1))
    for row in alone:
        window, n = int(rng.uniform(0.84, 1) * n_patches), int(rng.uniform(0, 0.4) * n_patches)
        start = rng.integers(n_patches - window + 1)
        context, alpha, margins = row[:-1].reshape(3, n_patches)
        context[start : start + window] = 1
        for first in (0, n_patches - margin):
            margins[first + rng.permutation(margin)[:n]] = 1
        context[margins == 1] = 0
        widest = max(len(run) for run in "".join(map(str, context.astype(int))).split("0"))
        width = min(int(rng.uniform(0.2, 0.6) * n_patches), widest)
        places = [i for i in range(n_patches - width + 1) if context[i : i + width].all()]
        place = rng.choice(places)
        alpha[place : place + width] = 1
        observed = rng.permutation(40)[: int(rng.uniform(0.84, 1) * 40)]
        row[-1] = (observed >= int(rng.uniform(0.45, 0.6) * 40)).sum()

    error = np.hypot(drawn.std(axis=0) / len(drawn) ** 0.5, alone.std(axis=0) / len(alone) ** 0.5)
    assert (np.abs(drawn.mean(axis=0) - alone.mean(axis=0)) <= 4 * error).all()


def test_positions_differ_between_samples():
    masks = make().sample(16, 0)
    c_r = on_grid(masks.context, make()).any(axis=2)
    assert len(np.unique(c_r, axis=0)) == 16
    assert any(
        len(np.unique(on_grid(make().sample(16, s).context, make()).any(axis=1), axis=0)) > 2
        for s in range(10)
    )


def test_allow_overlap_leaves_the_observation_block_whole():
    apart, overlapping = make(), make(allow_overlap=True)
    for step in range(100):
        _, [context], [targets] = overlapping(numbered(4, step))
        _, [context_apart], [targets_apart] = apart(numbered(4, step))
        assert torch.equal(targets, targets_apart)
        sizes = apart.sizes(step)
        assert context.shape[1] == sizes.observed_rows * sizes.window
        assert torch.isin(context_apart[0], context[0]).all()
        observed = on_grid(context.numpy(), apart)
        assert observed.max() == 1
        assert torch.isin(targets[0], context[0]).any()


# ------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enc_mask_scale": (1.0, 0.84)}, r"mask\.enc_mask_scale is \[1\.0, 0\.84\]"),
        ({"pred_mask_T_scale": (0.0, 1.4)}, r"mask\.pred_mask_T_scale"),
        ({"pred_mask_R_scale": (0.0, 0.0)}, r"max above 0"),
        ({"pred_mask_R_roi_scale": (0.1,)}, r"mask\.pred_mask_R_roi_scale"),
        ({"pred_mask_R_scale": (0.5, 1.0)}, r"takes all 450 ROIs"),
        ({"min_keep": 2000}, r"mask\.min_keep is 2000.*between 1 and 1512"),
        ({"min_keep": 0}, r"mask\.min_keep is 0"),
        ({"enc_mask_scale": (0.1, 0.2)}, r"smallest context that may be drawn has 45 ROIs x 0"),
        ({"grid": (1, 160, 16)}, r"at least 2 ROIs"),
    ],
)
def test_impossible_settings_are_user_errors(options, message):
    with pytest.raises(UserError, match=message):
        make(**options)


def test_beta_and_gamma_can_be_switched_off():
    collator = make(pred_mask_R_roi_scale=(0.0, 0.0))
    masks = collator.sample(2, 0)
    assert masks.blocks["beta"].shape == masks.blocks["gamma"].shape == (2, 0)
    assert_valid(masks, collator)
