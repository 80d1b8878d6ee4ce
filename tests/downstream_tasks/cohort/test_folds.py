"""Cross-validation and leave-one-site-out: everyone is tested once, by a model of other people."""

import numpy as np
import pytest

from downstream_tasks.cohort.folds import leave_one_site_out
from downstream_tasks.cohort.runs import (
    RunSplit,
    make_splits,
    save_splits,
    split_notes,
    stored_splits,
)
from downstream_tasks.cohort.splits import Split, assert_disjoint, split_path
from downstream_tasks.config import SplitConfig
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import make_cohort

CV = SplitConfig(source="cv", folds=4)
BINARY = np.array([0] * 60 + [1] * 40)
SITES = {"site": ["A"] * 40 + ["B"] * 30 + ["C"] * 30}


def test_everyone_is_tested_once_by_people_who_are_not_related():
    families = [f"f{i // 2}" for i in range(100)]
    cohort = make_cohort(BINARY, classes=("a", "b"), families=families, runs=2)
    runs = make_splits(cohort, CV, range(3))
    assert [run.name for run in runs[:5]] == [f"seed0_fold{k}" for k in range(4)] + ["seed1_fold0"]
    group = cohort.examples["group"].to_numpy()
    for seed in range(3):
        folds = [run.split for run in runs if run.seed == seed]
        tested = np.concatenate([split.test for split in folds])
        np.testing.assert_array_equal(np.sort(tested), np.arange(200))
        for split in folds:
            assert_disjoint(cohort, split)
            assert not set(group[split.test]) & set(group[np.r_[split.train, split.valid]])
            assert len(split.train) + len(split.valid) + len(split.test) == 200
            # 25 people of whom 10 are b; families of two cannot be halved
            assert abs(cohort.y[split.test].mean() - 0.4) < 0.05
            assert abs(cohort.y[split.valid].mean() - 0.4) < 0.1
            assert len(split.valid) / (len(split.valid) + len(split.train)) == pytest.approx(
                0.25, abs=0.03
            )
    assert set(runs[0].split.test) != set(runs[4].split.test)  # each seed is a new partition


def test_without_validation_all_others_train():
    cohort = make_cohort(np.random.default_rng(0).normal(size=60))
    for run in make_splits(cohort, CV, [0], validation=False):
        assert (len(run.split.train), len(run.split.valid), len(run.split.test)) == (45, 0, 15)
        assert abs(cohort.y[run.split.test].mean() - cohort.y.mean()) < 0.25  # quantile bins


def test_stored_folds_are_read_again_and_must_be_complete(tmp_path):
    cohort = make_cohort(BINARY, classes=("a", "b"))
    runs = make_splits(cohort, CV, range(2), validation=False)
    save_splits(tmp_path, cohort, runs)
    again = stored_splits(cohort, CV, range(2), tmp_path)
    assert [run.name for run in again] == [run.name for run in runs]
    for one, other in zip(runs, again, strict=True):
        np.testing.assert_array_equal(one.split.test, other.split.test)
        np.testing.assert_array_equal(one.split.train, other.split.train)
    split_path(tmp_path, "seed1_fold3").unlink()
    with pytest.raises(UserError, match="folds of seed 1 do not test everyone exactly once: 25"):
        stored_splits(cohort, CV, range(2), tmp_path)
    with pytest.raises(UserError, match=r"split_seed2_fold0\.tsv does not exist"):
        stored_splits(cohort, CV, [2], tmp_path)


def test_too_few_people_for_the_folds():
    with pytest.raises(UserError, match="needs 4 folds, there are only 3 people"):
        make_splits(make_cohort(np.arange(3.0)), CV, [0])


def test_every_site_is_left_out_once(tmp_path):
    cohort = make_cohort(BINARY, classes=("a", "b"), runs=2, columns=SITES)
    config = SplitConfig(source="site", site="site")
    runs = make_splits(cohort, config, [0])
    save_splits(tmp_path, cohort, runs)
    sites = cohort.column("site", "split.site")
    for run, site in zip(runs, "ABC", strict=True):
        assert set(sites[run.split.test]) == {site}
        assert site not in set(sites[np.r_[run.split.train, run.split.valid]])
    notes = split_notes(cohort, config, runs)
    assert notes[0] == (
        "leave-one-site-out over site: fold 0 is A (40 people), fold 1 is B (30 people), "
        "fold 2 is C (30 people)"
    )
    assert notes[1].startswith("everyone at site A is a")
    assert notes[2].startswith("everyone at site C is b")
    assert len(stored_splits(cohort, config, [0], tmp_path)) == 3


def test_families_across_sites_do_not_train():
    families = [f"f{i}" for i in range(100)]
    families[40] = "f0"  # a sibling of the first person of A, at B
    cohort = make_cohort(np.arange(100.0), families=families, columns=SITES)
    split = leave_one_site_out(cohort, "site", 0, None)["A"]
    assert 40 not in split.train
    assert len(split.train) == 59


def test_sites_that_cannot_be_left_out():
    config = SplitConfig(source="site", site="site")
    one = make_cohort(np.arange(4.0), columns={"site": ["A"] * 4})
    with pytest.raises(UserError, match=r"everyone has site 'A'.*split.source=cv"):
        make_splits(one, config, [0])
    gap = make_cohort(np.arange(4.0), columns={"site": ["A", "B", None, "B"]})
    with pytest.raises(UserError, match=r"1 people have no value of 'site'.*: sub-002"):
        make_splits(gap, config, [0])
    with pytest.raises(UserError, match=r"no column 'site'.*Did you mean 'sites'"):
        make_splits(make_cohort(np.arange(4.0), columns={"sites": list("ABAB")}), config, [0])
    moved = make_cohort(np.arange(4.0), runs=2, columns={"site": list("ABAB")})
    moved.table.loc[1, "site"] = "B"
    with pytest.raises(UserError, match=r"1 scored units have runs at several sites.*sub-000"):
        make_splits(moved, config, [0])


def test_folds_without_a_class_are_pointed_out():
    cohort = make_cohort(np.array([0] * 20 + [1] * 3), classes=("a", "b"))
    runs = make_splits(cohort, CV, [0], validation=False)
    (note,) = split_notes(cohort, CV, runs)
    assert note.startswith("the test people of seed0_fold")
    assert note.count("seed0_fold") == 1  # four folds, three people
    assert "one class for everyone has more than 0.5" in note
    split = Split(train=np.arange(5, 23), valid=np.array([], dtype=int), test=np.arange(5))
    (alone,) = split_notes(cohort, SplitConfig(), [RunSplit(0, None, split)])
    assert alone.startswith("the test people of seed0 do not hold every class")
    balanced = make_cohort(BINARY, classes=("a", "b"))
    assert split_notes(balanced, CV, make_splits(balanced, CV, [0])) == ()
    assert split_notes(make_cohort(np.arange(9.0)), CV, []) == ()
