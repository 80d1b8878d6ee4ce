"""Draws of few labelled events."""

import numpy as np
import pandas as pd
import pytest

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.few_shot import draw_events, few_shot_runs
from downstream_tasks.cohort.runs import RunSplit
from downstream_tasks.cohort.splits import Split
from downstream_tasks.config import FewShotConfig
from src.utils.errors import UserError


@pytest.fixture
def cohort() -> Cohort:
    """Ten people, sub-0 to sub-9, with ten events each; sub-3 has one event of class b only."""
    person = np.repeat(np.arange(10), 10)
    y = np.tile(np.arange(10) % 2, 10)
    y[person == 3] = np.arange(10) == 0
    ids = np.array([f"sub-{i}" for i in range(10)])[person]
    examples = pd.DataFrame({"row": person, "start": 5, "participant_id": ids, "group": ids})
    return Cohort(examples, y, ("a", "b"), examples.copy())


@pytest.fixture
def split() -> Split:
    return Split(np.arange(60), np.arange(60, 80), np.arange(80, 100))


def test_so_many_events_of_each_class_of_so_many_training_people(cohort, split):
    config = FewShotConfig(events=2, people=3, draws=40)
    drawn = few_shot_runs(cohort, [RunSplit(0, None, split)], config)
    assert [draw for _, draw in drawn] == list(range(40))
    who = set()
    for run, _ in drawn:
        train = run.split.train
        table = pd.crosstab(cohort.people[train], cohort.y[train])
        assert table.shape == (3, 2)
        assert (table.to_numpy() == 2).all()
        assert set(train) <= set(split.train)
        assert not len(run.split.valid)
        np.testing.assert_array_equal(run.split.test, split.test)
        who |= set(table.index)
    assert who == {f"sub-{i}" for i in (0, 1, 2, 4, 5)}  # sub-3 has one event of class b
    assert len({tuple(run.split.train) for run, _ in drawn}) > 30


def test_a_draw_depends_on_its_numbers_alone_and_smaller_draws_are_parts_of_larger_ones(
    cohort, split
):
    def drawn(**keys):
        return set(draw_events(cohort, split, FewShotConfig(**keys), 4, 7).train.tolist())

    assert drawn(events=2, people=2) == drawn(events=2, people=2, draws=9)
    assert drawn(events=2, people=2) < drawn(events=3, people=2) < drawn(events=3, people=4)
    other = draw_events(cohort, split, FewShotConfig(events=2, people=2), 4, 8)
    assert drawn(events=2, people=2) != set(other.train.tolist())


def test_every_event_is_drawn_as_often(cohort, split):
    config = FewShotConfig(events=1, people=1)
    counts = np.zeros(100)
    for draw in range(3000):
        counts[draw_events(cohort, split, config, 0, draw).train] += 1
    able = cohort.people[:60] != "sub-3"
    # One of five events of a class of one of six people, but sub-3's b is always the same one.
    np.testing.assert_allclose(counts[:60][able], 3000 / 6 / 5, atol=45)
    assert counts[60:].sum() == 0


def test_without_events_the_runs_are_as_they_are(cohort, split):
    run = RunSplit(0, None, split)
    assert few_shot_runs(cohort, [run], FewShotConfig()) == [(run, None)]


def test_more_people_than_have_so_many_events(cohort, split):
    with pytest.raises(UserError, match=r"5 of 6 training people have 2 events .* than 6"):
        draw_events(cohort, split, FewShotConfig(events=2, people=6), 0, 0)
