"""People- and family-disjoint splits: drawn, stratified, stored, asserted."""

import numpy as np
import pandas as pd
import pytest

from downstream_tasks.cohort.runs import make_splits, save_splits
from downstream_tasks.cohort.splits import (
    Split,
    assert_disjoint,
    draw_split,
    folder_split,
    inner_folds,
    load_split,
    save_split,
)
from downstream_tasks.config import SplitConfig
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import make_cohort

BINARY = np.array([0] * 60 + [1] * 40)


def members(split: Split) -> np.ndarray:
    return np.sort(np.concatenate([split.train, split.valid, split.test]))


@pytest.mark.parametrize("seed", range(3))
def test_six_two_two_stratified_by_class(seed):
    cohort = make_cohort(BINARY, classes=("a", "b"))
    split = draw_split(cohort, (0.6, 0.2, 0.2), seed)
    assert [len(p) for p in split.parts().values()] == [60, 20, 20]
    assert [int(cohort.y[p].sum()) for p in split.parts().values()] == [24, 8, 8]
    np.testing.assert_array_equal(members(split), np.arange(100))


def test_other_fractions():
    cohort = make_cohort(BINARY, classes=("a", "b"))
    split = draw_split(cohort, (7, 1, 2), 0)
    assert [len(p) for p in split.parts().values()] == [70, 10, 20]
    with pytest.raises(UserError, match="at least 1/20"):
        draw_split(cohort, (0.98, 0.01, 0.01), 0)


def test_regression_is_stratified_by_quantiles():
    y = np.random.default_rng(0).normal(size=200)
    gaps = []
    for seed in range(10):
        split = draw_split(make_cohort(y), (0.6, 0.2, 0.2), seed)
        gaps.append(abs(y[split.test].mean() - y[split.train].mean()))
    assert np.mean(gaps) < 0.06  # unstratified: sd of the difference is about .18


def test_families_stay_together_and_everyone_is_somewhere():
    families = [f"f{i // 3}" for i in range(100)]
    cohort = make_cohort(BINARY, classes=("a", "b"), families=families, runs=2)
    split = draw_split(cohort, (0.6, 0.2, 0.2), 1)
    assert_disjoint(cohort, split)
    np.testing.assert_array_equal(members(split), np.arange(200))
    group = cohort.examples["group"].to_numpy()
    assert not set(group[split.train]) & set(group[split.test])


def test_draws_depend_on_the_seed_alone():
    cohort = make_cohort(BINARY, classes=("a", "b"))
    first, same, other = (draw_split(cohort, (0.6, 0.2, 0.2), s) for s in (3, 3, 4))
    np.testing.assert_array_equal(first.test, same.test)
    assert set(first.test) != set(other.test)
    often = np.zeros(100)
    for seed in range(100):
        often[draw_split(cohort, (0.6, 0.2, 0.2), seed).test] += 1
    assert 5 <= often.min() <= often.max() <= 40  # everyone is in the test set about 20 times


def test_too_few_people():
    cohort = make_cohort(np.array([0, 1, 0, 1]), classes=("a", "b"))
    with pytest.raises(UserError, match="needs 5 folds, there are only 4 people"):
        draw_split(cohort, (0.6, 0.2, 0.2), 0)
    with pytest.raises(UserError, match="too few for inner cross-validation"):
        inner_folds(cohort, np.array([0, 1]), 5, 0)


def test_splits_are_written_and_read_again(tmp_path):
    cohort = make_cohort(BINARY, classes=("a", "b"), runs=2)
    config = SplitConfig(resample=True)
    runs = make_splits(cohort, config, range(2))
    save_splits(tmp_path, cohort, runs)
    splits = [run.split for run in runs]
    assert set(splits[0].test) != set(splits[1].test)
    table = pd.read_csv(tmp_path / "split_seed1.tsv", sep="\t")
    assert len(table) == 100  # people, not runs
    again = make_splits(cohort, SplitConfig(file=str(tmp_path / "split_seed1.tsv")), range(2))
    for _, _, split in again:
        np.testing.assert_array_equal(split.test, splits[1].test)
        np.testing.assert_array_equal(split.valid, splits[1].valid)


def test_without_resampling_all_seeds_share_a_split():
    cohort = make_cohort(BINARY, classes=("a", "b"))
    one, two = make_splits(cohort, SplitConfig(seed=7), range(2))
    np.testing.assert_array_equal(one.split.test, two.split.test)
    assert [one.name, two.name] == ["seed0", "seed1"]


def test_a_stored_split_must_fit(tmp_path):
    cohort = make_cohort(np.arange(10.0))
    split = draw_split(cohort, (0.6, 0.2, 0.2), 0)
    path = tmp_path / "s.tsv"
    save_split(path, cohort, split)
    text = path.read_text()
    path.write_text(text.replace("sub-003", "sub-999"))
    with pytest.raises(UserError, match="does not name 1 labelled people: sub-003"):
        load_split(path, cohort)
    path.write_text(text + "sub-003\ttrain\nsub-003\ttest\n")
    with pytest.raises(UserError, match="two parts: sub-003"):
        load_split(path, cohort)
    path.write_text(text.replace("valid", "val"))
    with pytest.raises(UserError, match="split is 'val'"):
        load_split(path, cohort)
    path.write_text(text + "sub-100\ttest\n")
    np.testing.assert_array_equal(load_split(path, cohort).test, split.test)
    with pytest.raises(UserError, match="does not exist"):
        load_split(tmp_path / "none.tsv", cohort)


def test_the_folders_own_split():
    parts = ["train"] * 6 + ["valid"] * 2 + ["test"] * 2
    cohort = make_cohort(np.arange(10.0), split=parts)
    ((_, _, split),) = make_splits(cohort, SplitConfig(source="folder"), [0])
    assert split.test.tolist() == [8, 9]
    with pytest.raises(UserError, match="no labelled people for valid"):
        folder_split(make_cohort(np.arange(3.0), split=["train", "train", "test"]))


def test_people_and_families_on_both_sides_are_listed():
    cohort = make_cohort(np.arange(6.0), runs=2)
    with pytest.raises(UserError, match="1 people are in both train and test: sub-002"):
        assert_disjoint(cohort, Split(np.arange(5), np.array([6, 7]), np.arange(5, 6)))
    cohort = make_cohort(np.arange(6.0), families=["x", "x", "c", "d", "e", "f"])
    with pytest.raises(UserError, match=r"1 families.* in both train and valid: x"):
        assert_disjoint(cohort, Split(np.array([0, 2]), np.array([1, 3]), np.array([4, 5])))


def test_inner_folds_are_disjoint_stratified_and_within_the_examples():
    families = [f"f{i // 2}" for i in range(100)]
    cohort = make_cohort(BINARY, classes=("a", "b"), families=families)
    examples = np.arange(10, 90)
    folds = inner_folds(cohort, examples, 5, 0)
    assert len(folds) == 5
    group = cohort.examples["group"].to_numpy()[examples]
    seen = np.concatenate([score for _, score in folds])
    np.testing.assert_array_equal(np.sort(seen), np.arange(80))
    for fit, score in folds:
        assert not set(group[fit]) & set(group[score])
        assert set(cohort.y[examples][score]) == {0, 1}


def test_rare_classes_get_fewer_inner_folds(caplog):
    cohort = make_cohort(np.array([0] * 30 + [1] * 3), classes=("a", "b"))
    assert len(inner_folds(cohort, np.arange(33), 5, 0)) == 3
    assert "3 folds" in caplog.text
