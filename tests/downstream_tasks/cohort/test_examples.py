"""Labelled examples: what is kept, what is dropped and listed, and what is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from downstream_tasks.cohort.examples import Cohort, class_label, disjoint_groups, load_cohort
from downstream_tasks.config import DataConfig
from src.datasets.clip_input import ClipInput
from src.datasets.folder import DataFolder
from src.datasets.folder.writer import FolderWriter
from src.utils.errors import UserError

CLIP = ClipInput((3, 16), stride=1)
PATCH_SIZE = 4


def write(path: Path, rows: list[dict], frames: int = 40, flat_runs: tuple[int, ...] = ()) -> Path:
    rng = np.random.default_rng(0)
    with FolderWriter(path, roi_labels=["a", "b", "c"], atlas="x", provenance={}) as writer:
        for i, row in enumerate(rows):
            series = rng.normal(size=(3, frames))
            if i in flat_runs:
                series[1] = 5.0
            writer.add_run(series, tr=2.0, **row)
    return path


def people(**columns: list) -> list[dict]:
    n = len(next(iter(columns.values())))
    return [
        {"participant_id": f"s{i}"} | {name: values[i] for name, values in columns.items()}
        for i in range(n)
    ]


def load(path: Path, clip_input: ClipInput = CLIP, **config) -> Cohort:
    data = DataConfig(data_path=str(path), **config)
    clip_input = clip_input.changed(short_runs=data.short_runs, bad_rois=data.bad_rois)
    return load_cohort(DataFolder(path), data, clip_input, PATCH_SIZE)


def test_classes_are_numbered_in_the_order_stated(tmp_path):
    path = write(tmp_path / "d", people(diagnosis=["MCI", "NC", "NC", "MCI"]))
    cohort = load(path, target="diagnosis", classes=("NC", "MCI"))
    assert cohort.y.tolist() == [1, 0, 0, 1]
    assert cohort.classes == ("NC", "MCI")
    assert load(path, target="diagnosis").classes == ("MCI", "NC")  # sorted, if not stated


def test_missing_targets_are_dropped_counted_and_listed(tmp_path, caplog):
    path = write(tmp_path / "d", people(sex=[1, None, 0, 1, None]))
    cohort = load(path, target="sex")
    assert cohort.people.tolist() == ["s0", "s2", "s3"]
    assert cohort.classes == ("0", "1")  # not "0.0": the column is read as float
    dropped = cohort.summary().dropped["no value of sex"]
    assert (dropped.n, dropped.names) == (2, ("s1", "s4"))
    assert "s1, s4" in caplog.text


@pytest.mark.parametrize(
    ("values", "config", "message"),
    [
        (["F", "M"], {"target": "sez"}, r"no target column 'sez'. Did you mean 'sex'\?"),
        (["F", "F"], {"target": "sex"}, "one class only, 'F'"),
        ([None, None], {"target": "sex"}, "no one has a value"),
        (["F", "X"], {"target": "sex", "classes": ("F", "M")}, "ignore_labels"),
        (["F", "M"], {"target": "sex", "classes": ("F", "M", "X")}, "no one is in class X"),
        (["F", "M"], {"target": "sex", "nb_classes": 3}, "has 2 classes"),
        (["F", "M"], {"target": "sex", "type": "regression"}, "must be a number.*'F' of s0"),
        ([1.0, 1.0], {"target": "sex", "type": "regression"}, "1 for everyone"),
        (["F", "M"], {"target": "sex", "ignore_labels": ("M",)}, "one class only"),
        (["F", "M"], {"target": "sex", "unit": "event"}, "events.tsv is missing"),
        (["F", "M"], {"target": "sex", "disjoint": ("sit",)}, "no column 'sit', in which splits"),
    ],
)
def test_targets_that_cannot_be_used(tmp_path, values, config, message):
    path = write(tmp_path / "d", people(sex=values))
    with pytest.raises(UserError, match=message):
        load(path, **config)


def test_ignored_labels_are_left_out_and_listed(tmp_path):
    path = write(tmp_path / "d", people(dx=["NC", "AD", "MCI", "AD"]))
    cohort = load(path, target="dx", classes=("NC", "MCI"), ignore_labels=("AD",))
    assert cohort.y.tolist() == [0, 1]
    assert cohort.dropped["ignored class"] == ["s1", "s3"]


def test_a_horizon_makes_the_classes_and_counts_who_is_left_out(tmp_path, caplog):
    path = write(
        tmp_path / "data",
        people(days=[100, 400, 30, 900, 200], converted=[1, 1, 0, 0, 1]),
    )
    cohort = load(path, target="conversion", time="days", event="converted", horizon=365.0)
    assert cohort.classes == ("no event", "event")
    assert cohort.y.tolist() == [1, 0, 0, 1]
    assert cohort.dropped == {"lost to follow-up before 365": ["s2"]}
    assert "left out, lost to follow-up before 365: 1 (s2)" in caplog.text


def test_runs_with_bad_rois_are_excluded_or_kept(tmp_path):
    path = write(tmp_path / "d", people(age=[20, 30, 40]), flat_runs=(1,))
    cohort = load(path, target="age", type="regression")
    assert cohort.people.tolist() == ["s0", "s2"]
    assert cohort.dropped["runs with bad ROIs"] == ["s1/01/01"]
    kept = load(path, target="age", type="regression", bad_rois="zero")
    assert kept.y.tolist() == [20, 30, 40]


def test_excluded_people_are_read_by_nothing_and_are_not_called_bad(tmp_path):
    path = write(tmp_path / "d", people(age=[20, 30, 40]))
    table = path / "participants.tsv"
    lines = table.read_text().splitlines()
    place = lines[0].split("\t").index("split")
    cells = lines[2].split("\t")
    cells[place] = "excluded"
    table.write_text("\n".join([*lines[:2], "\t".join(cells), *lines[3:]]) + "\n")
    cohort = load(path, target="age", type="regression")
    assert cohort.people.tolist() == ["s0", "s2"]
    assert cohort.dropped == {}


def test_runs_too_short_for_a_clip_are_dropped_if_asked_for(tmp_path):
    path = write(tmp_path / "d", people(age=[20, 30]), frames=40)
    long = ClipInput((3, 48), stride=1)
    with pytest.raises(UserError, match="no one has a value"):
        load(path, long, target="age", type="regression", short_runs="skip")
    assert len(load(path, long, target="age", type="regression", short_runs="pad").y) == 2


def test_runs_of_a_person_are_one_unit(tmp_path):
    rows = [
        {"participant_id": p, "run": r, "age": a} for r in "12" for p, a in (("a", 5), ("b", 7))
    ]
    path = write(tmp_path / "d", rows)
    cohort = load(path, target="age", type="regression")
    assert cohort.examples["unit"].tolist() == [0, 1, 0, 1]
    units, pooled, y = cohort.unit_mean(np.array([1.0, 2.0, 3.0, 6.0]), np.arange(4))
    assert (units.tolist(), pooled.tolist(), y.tolist()) == ([0, 1], [2.0, 4.0], [5.0, 7.0])
    _, pooled, y = cohort.unit_mean(np.array([[1.0, 0.0], [3.0, 2.0]]), np.array([3, 1]))
    assert (pooled.tolist(), y.tolist()) == ([[2.0, 1.0]], [7.0])
    by_run = load(path, target="age", type="regression", unit="run")
    assert by_run.examples["unit"].tolist() == [0, 1, 2, 3]


def test_chosen_runs_only(tmp_path):
    rows = [
        {"participant_id": p, "run": r, "age": a} for r in "12" for p, a in (("a", 5), ("b", 7))
    ]
    path = write(tmp_path / "d", rows)
    cohort = load(path, target="age", type="regression", runs=("2",))
    assert cohort.examples["row"].tolist() == [2, 3]
    with pytest.raises(UserError, match=r"no run '3' \(data.runs\). It has: 1, 2"):
        load(path, target="age", type="regression", runs=("2", "3"))


def test_a_target_that_changes_between_runs_needs_unit_run(tmp_path):
    rows = [{"participant_id": "a", "run": str(i), "age": 5 + i} for i in range(2)]
    rows += [{"participant_id": "b", "run": "0", "age": 9}]
    path = write(tmp_path / "d", rows)
    with pytest.raises(UserError, match="differs between the runs of 1 persons, first a"):
        load(path, target="age", type="regression")
    assert load(path, target="age", type="regression", unit="run").y.tolist() == [5, 6, 9]


def test_families_and_sites_are_joined_over_people():
    table = pd.DataFrame(
        {
            "participant_id": ["a", "b", "c", "a", "d", "e"],
            "family_id": ["f1", "f2", None, "f1", "f2", None],
            "site": ["x", "y", "y", "x", "z", "z"],
        }
    )
    assert disjoint_groups(table, []).tolist() == ["a", "b", "c", "a", "d", "e"]
    assert disjoint_groups(table, ["family_id"]).tolist() == ["a", "b", "c", "a", "b", "e"]
    # b and d are one family, c is at b's site, e at d's.
    assert disjoint_groups(table, ["family_id", "site"]).tolist() == ["a", "b", "b", "a", "b", "b"]
    assert disjoint_groups(table, ["no_such_column"]).tolist() == list("abcade")


def test_class_labels():
    assert [class_label(v) for v in (1, 1.0, "1", 1.5, "F", np.int64(2))] == [
        "1", "1", "1", "1.5", "F", "2",
    ]  # fmt: skip


# --- events ---------------------------------------------------------------------------------------


def event_folder(tmp_path: Path, onsets: list[float]) -> Path:
    path = write(tmp_path / "d", people(age=[20, 30]))
    events = pd.DataFrame(
        [
            {"participant_id": f"s{p}", "session": "01", "run": "01", "onset": t, "kind": k}
            for p in range(2)
            for t, k in zip(onsets, ["heat", "rating"] * len(onsets), strict=False)
        ]
    )
    events.to_csv(path / "events.tsv", sep="\t", index=False)
    return path


def test_the_scored_patch_starts_after_the_onset_at_the_same_place(tmp_path):
    path = event_folder(tmp_path, [13.0, 33.0])
    cohort = load(path, target="kind", unit="event", delay_seconds=5.0, scored_patch=2)
    # (13 + 5) s / 2 s = frame 9, two patches of 4 frames into the clip; (33 + 5) / 2 - 8 = 11.
    assert cohort.examples["start"].tolist() == [1, 11, 1, 11]
    assert cohort.y.tolist() == [0, 1, 0, 1]
    assert cohort.examples["unit"].nunique() == 4
    assert cohort.people.tolist() == ["s0", "s0", "s1", "s1"]
    strided = ClipInput((3, 8), stride=2)
    cohort = load(path, strided, target="kind", unit="event", scored_patch=1)
    assert cohort.examples["start"].tolist() == [1, 11, 1, 11]  # 4 samples of 2 frames


def test_events_without_room_are_dropped_and_listed(tmp_path):
    # Frames 2 and 42: a clip would begin at -6, or end after the last of 40 frames.
    path = event_folder(tmp_path, [13.0, 33.0, -1.0, 79.0])
    cohort = load(path, target="kind", unit="event", scored_patch=2)
    assert len(cohort.y) == 4
    dropped = cohort.dropped["events without room for a clip"]
    assert dropped == [
        "s0/01/01 at -1 s",
        "s0/01/01 at 79 s",
        "s1/01/01 at -1 s",
        "s1/01/01 at 79 s",
    ]
    with pytest.raises(UserError, match="patches 0 to 3"):
        load(path, target="kind", unit="event", scored_patch=4)


def test_events_use_the_clip_step_of_the_target_tr(tmp_path):
    path = event_folder(tmp_path, [13.0, 23.0])
    clip = ClipInput((3, 8), target_tr=3.0)
    cohort = load(path, clip, target="kind", unit="event", scored_patch=1)
    assert cohort.examples["start"].tolist() == [3, 8, 3, 8]  # 9 - 4 x 1.5, 14 - 6
