"""Masks are a pure function of seed, step and rank, whatever the batch and the worker."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from src.masks.collator import MaskCollator
from src.masks.spatiotemporal import SpatiotemporalMasks
from tests.masks.conftest import make, numbered


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


def test_sizes_differ_between_steps_and_not_between_ranks():
    mode = SpatiotemporalMasks(450, 10)
    first, second = (MaskCollator(mode, rank=rank) for rank in (0, 1))
    drawn = [
        [(sizes.context_rows, sizes.alpha_rows) for sizes in map(collator.sizes, range(20))]
        for collator in (first, second)
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 10
