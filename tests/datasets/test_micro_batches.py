"""Micro-batches are a pure function of (seed, step, rank) and lose nothing over ranks."""

import pytest

from src.datasets.micro_batches import MicroBatchSampler
from src.utils.errors import UserError


def batches(**settings):
    defaults = {"batch_size": 3, "accumulation": 2, "epochs": 4, "seed": 5}
    return list(MicroBatchSampler(20, **{**defaults, **settings}))


def test_an_epoch_visits_no_item_twice_and_every_epoch_is_another_order():
    sampler = MicroBatchSampler(20, batch_size=3, accumulation=2, epochs=4, seed=5)
    assert sampler.steps_per_epoch == 3
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == 4 * 3 * 2
    first, second = ([item for batch in drawn[k : k + 6] for item, _, _ in batch] for k in (0, 6))
    assert len(set(first)) == len(first) == 18
    assert first != second


def test_starting_at_a_step_is_the_tail_of_the_whole():
    whole = batches()
    for step in (1, 3, 7):
        assert batches(first_step=step) == whole[2 * step :]


def test_two_ranks_see_what_one_process_sees_with_twice_the_batch():
    one = batches(batch_size=4, accumulation=2)
    pair = [batches(batch_size=2, accumulation=2, rank=r, world_size=2) for r in (0, 1)]
    assert one == [a + b for a, b in zip(*pair, strict=True)]


def test_repeats_are_told_apart_by_their_visit():
    drawn = [item for batch in batches(repeats=3, epochs=2) for item in batch]
    visits = [(item, visit) for item, visit, _ in drawn]
    assert len(set(visits)) == len(visits)
    assert {visit for _, visit in visits} == set(range(6))


def test_each_micro_step_has_its_own_draw():
    draws = [{draw for _, _, draw in batch} for batch in batches()]
    assert draws == [{k} for k in range(len(draws))]


def test_too_few_clips_for_one_step():
    with pytest.raises(UserError, match=r"20 clips.*global batch of 24"):
        MicroBatchSampler(20, batch_size=12, accumulation=2)
