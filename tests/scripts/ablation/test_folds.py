"""Who trains and who is scored, and what a fold's folder may know."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scripts.ablation.experiment import DataSet, plan_from_dict
from scripts.ablation.folds import make_folds, open_source, write_fold
from src.datasets.fmri import FMRIDataset
from src.datasets.folder import DataFolder
from src.datasets.prepare.gradients import compute_gradients
from src.datasets.prepare.synthetic import write_synthetic
from src.utils.errors import UserError
from tests.conftest import FRAMES, ROIS, tiny_config


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-three people, in families of one to three; two are for validation, five for test."""
    path = tmp_path_factory.mktemp("folds") / "source"
    write_synthetic(path, 23, n_rois=ROIS, frames=80, tr=2.0, valid=2, test=5)
    table = path / "participants.tsv"
    runs = pd.read_csv(table, sep="\t", dtype=str, keep_default_na=False)
    own = runs.groupby("split").cumcount() // 2  # families lie within the parts
    runs["family_id"] = runs["split"] + own.astype(str)
    runs.to_csv(table, sep="\t", index=False)
    (path / "events.tsv").write_text("of no interest\n")
    compute_gradients(DataFolder(path), n_components=5)
    return path


def experiment(**values):
    """An experiment of one arm with ``values``."""
    needed = {"name": "x", "pretrain": "p.yaml", "data": "d", "evaluate": "t", "arms": {"a": None}}
    return plan_from_dict(needed | values, "test").experiment


def folds_of(source: Path, **values):
    return make_folds(DataFolder(source).runs, experiment(**values), "table")


@pytest.mark.parametrize("folds", [2, 5])
def test_everyone_is_tested_once_and_trains_no_fold_that_tests_them(source, folds):
    found = folds_of(source, folds=folds, stage="report")
    people = set(DataFolder(source).runs["participant_id"])
    tested = Counter(person for fold in found for person in fold.people("test"))
    assert tested == Counter(people)
    for fold in found:
        parts = [set(fold.people(part)) for part in ("train", "valid", "test")]
        assert set.union(*parts) == people
        assert sum(map(len, parts)) == len(people)
    sizes = [len(fold.people("test")) for fold in found]
    assert max(sizes) - min(sizes) <= 2  # a family at most


@pytest.mark.parametrize("stage", ["choose", "report"])
@pytest.mark.parametrize("folds", [1, 3])
def test_families_stay_together(source, stage, folds):
    runs = DataFolder(source).runs
    family = dict(zip(runs["participant_id"], runs["family_id"], strict=True))
    for fold in folds_of(source, folds=folds, stage=stage):
        parts: dict[str, set[str]] = {}
        for person, part in fold.part_of.items():
            parts.setdefault(family[person], set()).add(part)
        assert all(len(own) == 1 for own in parts.values())


@pytest.mark.parametrize("folds", [1, 3])
def test_choosing_never_sees_the_test_people_of_the_data(source, folds):
    runs = DataFolder(source).runs
    kept_back = set(runs.loc[runs["split"] == "test", "participant_id"])
    found = folds_of(source, folds=folds, stage="choose")
    for fold in found:
        assert set(fold.people("excluded")) == kept_back
    tested = {person for fold in found for person in fold.people("test")}
    valid = set(runs.loc[runs["split"] == "valid", "participant_id"])
    assert tested == (valid if folds == 1 else set(runs["participant_id"]) - kept_back)


def test_one_fold_of_a_report_is_the_split_of_the_data(source):
    runs = DataFolder(source).runs
    (fold,) = folds_of(source, folds=1, stage="report")
    assert fold.part_of == dict(zip(runs["participant_id"], runs["split"], strict=True))


def test_folds_are_a_function_of_seed_and_people_whatever_their_order(source):
    runs = DataFolder(source).runs
    e = experiment(folds=4, stage="report")
    one, again = make_folds(runs, e, "t"), make_folds(runs.iloc[::-1], e, "t")
    assert [fold.part_of for fold in one] == [fold.part_of for fold in again]
    other = folds_of(source, folds=4, stage="report", split_seed=1)
    assert [fold.part_of for fold in one] != [fold.part_of for fold in other]


def test_the_share_of_validation_people_is_that_asked_for(source):
    for fold in folds_of(source, folds=3, stage="report", valid=0.4):
        others = 23 - len(fold.people("test"))
        assert abs(len(fold.people("valid")) - 0.4 * others) <= 2


def test_too_few_families_are_refused(source):
    with pytest.raises(UserError, match="13 folds of 12 people"):
        folds_of(source, folds=13, stage="report")


def test_data_that_are_missing_are_named_with_what_makes_them(tmp_path):
    data = DataSet(str(tmp_path / "no"), make=("python -m make --out {data_dir}",))
    with pytest.raises(UserError, match=r"Make it with: python -m make --out .*no"):
        open_source(data)


# --- the folder of a fold ------------------------------------------------------------------------


def test_a_folder_shares_the_series_and_holds_its_own_split(source, tmp_path):
    folder = DataFolder(source)
    fold = folds_of(source, folds=3, stage="choose")[1]
    written = DataFolder(write_fold(folder, fold, tmp_path / "fold", 5))
    assert (tmp_path / "fold" / "timeseries.npy").resolve() == (source / "timeseries.npy").resolve()
    assert (tmp_path / "fold" / "events.tsv").exists()
    same = [name for name in folder.runs.columns if name != "split"]
    pd.testing.assert_frame_equal(written.runs[same], folder.runs[same])
    assert dict(zip(written.runs["participant_id"], written.runs["split"], strict=True)) == (
        fold.part_of
    )
    read = set(written.runs["participant_id"].iloc[written.rows()])
    assert read == {person for person, part in fold.part_of.items() if part != "excluded"}


def test_what_a_fold_learns_from_does_not_depend_on_whom_it_scores(source, tmp_path):
    """Gradients and robust statistics stay to the bit when all but training people change."""
    folder = DataFolder(source)
    fold = folds_of(source, folds=3, stage="choose")[0]
    changed = tmp_path / "changed"
    shutil.copytree(source, changed)
    other = DataFolder(changed)
    series = np.load(changed / "timeseries.npy")
    noise = np.random.default_rng(0)
    for row in np.flatnonzero(~other.runs["participant_id"].isin(fold.people("train"))):
        start, size = other.offsets[row], other.n_rois * other.frames[row]
        series[start : start + size] = noise.normal(5, 3, size)
    np.save(changed / "timeseries.npy", series)

    found = []
    for name, each in (("one", folder), ("two", DataFolder(changed))):
        path = write_fold(each, fold, tmp_path / name, 5)
        config = tiny_config(path, tmp_path / "run", f"data.crop_size=[{ROIS},{FRAMES}]")
        stats = FMRIDataset(path, "train", config.clip_input).clip_input.stats
        found.append(((path / "gradients.csv").read_bytes(), stats["median"], stats["iqr"]))
    (csv_one, *one), (csv_two, *two) = found
    assert csv_one == csv_two
    np.testing.assert_array_equal(one, two)
    whole = write_fold(folder, folds_of(source, folds=3, stage="choose")[1], tmp_path / "three", 5)
    assert (whole / "gradients.csv").read_bytes() != csv_one  # they are of these people


def test_a_folder_of_other_people_is_refused_and_its_own_is_kept(source, tmp_path):
    folder, (one, two) = DataFolder(source), folds_of(source, folds=2, stage="report")
    path = write_fold(folder, one, tmp_path / "fold", None)
    before = (path / "participants.tsv").stat().st_mtime_ns
    write_fold(folder, one, path, None)
    assert (path / "participants.tsv").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="a fold of other data or other people"):
        write_fold(folder, two, path, None)
