"""The fingerprint of runs: what changes it, and what does not."""

from pathlib import Path

import numpy as np
import pytest

from src.datasets.folder import DataFolder, FolderWriter
from src.datasets.folder.fingerprint import runs_fingerprint


def train_fingerprint(path: Path) -> str:
    """Of the training runs of a folder."""
    folder = DataFolder(path)
    return runs_fingerprint(folder, folder.rows("train"))


def write(path: Path, people: dict[str, np.ndarray], **options: object) -> Path:
    """A folder of one training run for each person."""
    labels = options.pop("roi_labels", ["a", "b", "c"])
    with FolderWriter(path, roi_labels=labels, atlas="x", provenance={}) as writer:
        for person, series in people.items():
            writer.add_run(series, participant_id=person, **{"tr": 2.0, **options})
    return path


@pytest.fixture
def people() -> dict[str, np.ndarray]:
    """Three people of three ROIs and 40 frames."""
    rng = np.random.default_rng(0)
    return {f"p{i}": rng.normal(size=(3, 40)) for i in range(3)}


def test_the_same_runs_elsewhere_have_the_same_fingerprint(tmp_path, people):
    first = train_fingerprint(write(tmp_path / "a", people))
    assert first == train_fingerprint(write(tmp_path / "b", people))
    assert len(first) == 64


def test_swapped_people_change_it(tmp_path, people):
    before = train_fingerprint(write(tmp_path / "a", people))
    swapped_series = {"p0": people["p1"], "p1": people["p0"], "p2": people["p2"]}
    swapped_rows = {"p1": people["p1"], "p0": people["p0"], "p2": people["p2"]}
    for name, other in (("b", swapped_series), ("c", swapped_rows)):
        assert train_fingerprint(write(tmp_path / name, other)) != before


def test_every_property_of_a_run_changes_it(tmp_path, people):
    prints = {train_fingerprint(write(tmp_path / "plain", people))}
    changes = {
        "tr": {"tr": 1.0},
        "session": {"session": "02"},
        "run": {"run": "02"},
        "labels": {"roi_labels": ["a", "c", "b"]},
    }
    for name, options in changes.items():
        prints.add(train_fingerprint(write(tmp_path / name, people, **options)))
    prints.add(train_fingerprint(write(tmp_path / "id", {"q" + k: v for k, v in people.items()})))
    shorter = {name: series[:, :-1] for name, series in people.items()}
    prints.add(train_fingerprint(write(tmp_path / "frames", shorter)))
    assert len(prints) == len(changes) + 3


def test_a_changed_scale_of_one_person_changes_it(tmp_path, people):
    before = train_fingerprint(write(tmp_path / "a", people))
    assert train_fingerprint(write(tmp_path / "b", people | {"p2": 2 * people["p2"]})) != before


def test_split_and_bad_rois_change_it_and_phenotypes_do_not(tmp_path, people):
    path = write(tmp_path / "a", people, age=30)
    before = train_fingerprint(path)
    table = path / "participants.tsv"
    text = table.read_text()
    table.write_text(text.replace("\t30", "\t31"))
    assert table.read_text() != text
    assert train_fingerprint(path) == before

    table.write_text(text.replace("\ttrain\tn/a", "\ttrain\tb", 1))
    assert DataFolder(path).bad_roi_mask(0).tolist() == [False, True, False]
    assert train_fingerprint(path) != before

    table.write_text(text.replace("\ttrain\t", "\ttest\t", 1))
    assert train_fingerprint(path) != before
    everyone = np.arange(3)
    moved = runs_fingerprint(DataFolder(path), everyone)
    table.write_text(text)
    assert runs_fingerprint(DataFolder(path), everyone) != moved


def test_rows_that_are_not_asked_for_do_not_count(tmp_path, people):
    path = write(tmp_path / "a", people)
    before = runs_fingerprint(DataFolder(path), np.array([0, 1]))
    table = path / "participants.tsv"
    first, second = table.read_text().rsplit("\ttrain\t", 1)
    table.write_text(f"{first}\ttest\t{second}")
    assert runs_fingerprint(DataFolder(path), np.array([0, 1])) == before


def test_a_run_of_few_values_and_a_long_one(tmp_path):
    rng = np.random.default_rng(0)
    for name, frames in (("short", 2), ("long", 5000)):
        path = write(tmp_path / name, {"p": rng.normal(size=(3, frames))})
        before = train_fingerprint(path)
        series = np.load(path / "timeseries.npy")
        np.save(path / "timeseries.npy", series + np.float32(1))
        assert train_fingerprint(path) != before
