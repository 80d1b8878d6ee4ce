"""The masks keep the rules of spec 6, whatever the grid, the batch, the worker and the rank."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader, Dataset

from src.masks.sampler import MaskBatch, MaskSettings
from src.masks.spatiotemporal import SpatiotemporalMaskCollator
from src.utils.errors import UserError

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


def make(grid=(450, 160, 16), *, seed=0, rank=0, **options):
    n_rois, n_frames, patch_size = grid
    settings = MaskSettings(n_rois, n_frames // patch_size, **options)
    return SpatiotemporalMaskCollator(settings, seed=seed, rank=rank)


def numbered(n: int, draw: int) -> list[dict]:
    """Samples of one micro-batch, as the trainer's data set returns them."""
    return [{"fmri": torch.zeros(1, 3, 4), "draw": draw} for _ in range(n)]


def on_grid(tokens: np.ndarray, collator: SpatiotemporalMaskCollator) -> np.ndarray:
    """How often each patch occurs: [B, R, P]."""
    n_rois, n_patches = collator.settings.n_rois, collator.settings.n_patches
    counts = np.zeros((len(tokens), n_rois * n_patches), dtype=int)
    np.add.at(counts, (np.arange(len(tokens))[:, None], tokens), 1)
    return counts.reshape(-1, n_rois, n_patches)


def outer(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return rows[:, :, None] & columns[:, None, :]


def assert_valid(masks: MaskBatch, collator: SpatiotemporalMaskCollator) -> None:
    context, alpha, beta, gamma = (on_grid(tokens, collator) for tokens in masks[:4])
    c_r, c_t = context.any(axis=2), context.any(axis=1)
    assert context.max() == 1
    assert np.array_equal(context == 1, outer(c_r, c_t))
    assert masks.context.shape[1] >= collator.settings.min_keep
    assert masks.targets.shape[1] >= 1

    assert (context + alpha + beta + gamma).max() == 1
    regions = (outer(~c_r, c_t), outer(c_r, ~c_t), outer(~c_r, ~c_t))
    for block, region in zip((alpha, beta, gamma), regions, strict=True):
        assert not block[~region].any()
        rows, columns = block.any(axis=2), block.any(axis=1)
        assert np.array_equal(block == 1, outer(rows, columns))

    window = alpha.any(axis=1)
    edges = np.diff(window.astype(int), axis=1, prepend=0, append=0)
    assert (np.abs(edges).sum(axis=1) == 2).all(), "alpha's window is contiguous"
    margin = max(1, int(0.3 * window.shape[1] + 1e-9)) if window.shape[1] > 2 else 0
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


@pytest.mark.parametrize("grid", [(450, 160, 16), (94, 160, 16), (122, 32, 8)])
def test_every_roi_is_equally_likely_in_every_block(grid):
    collator = make(grid, seed=2)
    n_rois = grid[0]
    counts = np.zeros((4, n_rois))
    variance = np.zeros(4)
    mean = np.zeros(4)
    for step in range(400):
        masks = collator.sample(8, step)
        for block, tokens in enumerate(masks[:4]):
            has = on_grid(tokens, collator).any(axis=2)
            share = has[0].mean()
            counts[block] += has.sum(axis=0)
            mean[block] += len(has) * share
            variance[block] += len(has) * share * (1 - share) * n_rois / (n_rois - 1)
    # given the sizes, rows are a uniform choice without replacement; this sum is chi-square
    chi2 = ((counts - mean[:, None]) ** 2).sum(axis=1) / variance
    p_values = stats.chi2.sf(chi2, n_rois - 1)
    assert ((p_values > 1e-3) & (p_values < 1 - 1e-3)).all(), p_values


@pytest.mark.parametrize("grid", [(450, 160, 16), (20, 320, 16), (20, 32, 8), (20, 48, 16)])
def test_time_is_mirror_symmetric_and_every_patch_reachable(grid):
    collator = make(grid, seed=3)
    draws = [collator.sample(8, step) for step in range(1500)]
    for block in range(4):
        share = np.array([on_grid(d[block], collator).mean(axis=(0, 1)) for d in draws])  # [n, P]
        if block < 2:
            assert (share.mean(axis=0) > 0).all(), "every patch is context, and alpha, at times"
        difference = share - share[:, ::-1]
        error = difference.std(axis=0) / np.sqrt(len(draws))
        assert (np.abs(difference.mean(axis=0)) <= 4 * error).all()


def test_a_sample_is_distributed_as_if_drawn_alone():
    """Columns and rows left for the context match blocks placed independently of each other."""
    collator = make((40, 160, 16), seed=4)
    grids = [on_grid(collator.sample(16, step).context, collator) for step in range(2000)]
    columns = np.array([g.any(axis=1).mean(axis=0) for g in grids])  # [n, P]
    rows = np.array([g.any(axis=2).sum(axis=1).mean() for g in grids])

    rng = np.random.default_rng(0)
    alone = np.zeros((40_000, 10), dtype=bool)
    alone_rows = np.zeros(len(alone))
    for i in range(len(alone)):
        window, n = int(rng.uniform(0.84, 1) * 10), int(rng.uniform(0, 0.4) * 10)
        start, left, right = rng.integers([10 - window + 1, 3 - n + 1, 3 - n + 1])
        alone[i, start : start + window] = True
        alone[i, left : left + n] = False
        alone[i, 10 - right - n : 10 - right] = False
        observed = rng.permutation(40)[: int(rng.uniform(0.84, 1) * 40)]
        alone_rows[i] = (observed >= int(rng.uniform(0.45, 0.6) * 40)).sum()

    error = np.hypot(columns.std(axis=0) / 2000**0.5, alone.std(axis=0) / len(alone) ** 0.5)
    assert (np.abs(columns.mean(axis=0) - alone.mean(axis=0)) <= 4 * error).all()
    error = np.hypot(rows.std() / 2000**0.5, alone_rows.std() / len(alone) ** 0.5)
    assert abs(rows.mean() - alone_rows.mean()) < 4 * error


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


# --------------------------------------------------------------------------------- determinism


def same(a, b) -> bool:
    return all(
        len(x) == len(y) and all(torch.equal(s, t) for s, t in zip(x, y, strict=True))
        for x, y in zip(a[1:], b[1:], strict=True)
    )


def test_draw_is_a_function_of_seed_step_and_rank_alone():
    collator = make(seed=5, rank=1)
    before = vars(collator).copy()
    first = [collator(numbered(3, step)) for step in range(4)]
    assert vars(collator) == before, "no call leaves a trace"
    again = make(seed=5, rank=1)
    assert same(again(numbered(3, 2)), first[2]), "whatever was drawn before"
    for other in (make(seed=6, rank=1), make(seed=5, rank=0), make(seed=-5, rank=1)):
        assert not same(other(numbered(3, 2)), first[2])
    assert not same(again(numbered(3, 1)), first[2])


def test_ranks_share_the_masks_of_the_global_batch():
    for step in range(20):
        whole = make().sample(8, step)
        parts = [make(rank=rank).sample(4, step) for rank in (0, 1)]
        assert np.array_equal(whole.context, np.concatenate([p.context for p in parts]))
        assert np.array_equal(whole.targets, np.concatenate([p.targets for p in parts]))


class Numbered(Dataset):
    """Its sampler hands out (index, micro-batch), as the trainer's does."""

    def __getitem__(self, item):
        index, draw = item
        return {"fmri": torch.full((1, 3, 4), float(index)), "row": index, "draw": draw}


class NumberedBatches:
    """Goes on counting micro-batches from one epoch to the next."""

    draw = 100

    def __iter__(self):
        for i in range(5):
            yield [(2 * i, self.draw), (2 * i + 1, self.draw)]
            self.draw += 1


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_the_samples_decide_the_draw_over_epochs_and_workers(num_workers):
    loader = DataLoader(
        Numbered(),
        batch_sampler=NumberedBatches(),
        collate_fn=make((94, 160, 16)),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
    reference = make((94, 160, 16))
    for epoch in range(2):
        for i, got in enumerate(loader):
            collated, [enc], [pred] = got
            assert set(collated) == {"fmri", "row"}
            assert collated["row"].tolist() == [2 * i, 2 * i + 1]
            assert collated["fmri"].shape == (2, 1, 3, 4)
            assert enc.dtype == pred.dtype == torch.int64
            assert same(got, reference(numbered(2, 100 + 5 * epoch + i)))


def test_a_sample_is_not_changed_and_mixed_draws_are_refused():
    samples = numbered(2, 7)
    collated, _, _ = make()(samples)
    assert set(collated) == {"fmri"}
    assert set(samples[0]) == {"fmri", "draw"}
    samples[1]["draw"] = 8
    with pytest.raises(ValueError, match=r"several draws: \[7, 8\]"):
        make()(samples)


# ------------------------------------------------------------------------------ errors and time


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
        ({"enc_mask_scale": (0.1, 0.2)}, r"smallest observation block can keep 45 x 0"),
        ({"grid": (1, 160, 16)}, r"at least 2 ROIs"),
    ],
)
def test_impossible_settings_are_user_errors(options, message):
    with pytest.raises(UserError, match=message):
        make(**options)


def test_beta_and_gamma_can_be_switched_off():
    collator = make(pred_mask_R_roi_scale=(0.0, 0.0))
    masks = collator.sample(2, 0)
    assert masks.beta.shape == masks.gamma.shape == (2, 0)
    assert_valid(masks, collator)
