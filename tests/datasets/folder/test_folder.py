"""The data-set folder: what is written is read, and what is wrong is refused."""

import json
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from src.datasets.folder import DataFolder, FolderWriter
from src.datasets.folder import writer as folder_writer
from src.utils.errors import UserError

LABELS = ("a", "b", "c")


def series(seed, frames=10):
    return np.random.default_rng(seed).normal(100, 5, (len(LABELS), frames))


def writer(path, **options):
    options = {"roi_labels": LABELS, "atlas": "abc", "provenance": {"source": "test"}} | options
    return FolderWriter(path, **options)


@pytest.fixture
def path(tmp_path):
    """A folder of three people; p1 has another length, TR and phenotypes."""
    path = tmp_path / "folder"
    with writer(path) as out:
        out.add_run(series(0), participant_id="p0", tr=2.0, age=31.25, sex="F")
        out.add_run(
            series(1, 7), participant_id="p1", tr=0.735, split="valid", site="007", age=None
        )
        out.add_run(series(2), participant_id="p2", tr=2.0, split="test", sex="NA")
        out.add_run(series(3), participant_id="p0", tr=2.0, run="02", age=np.nan)
    return path


# --- round trip ----------------------------------------------------------------------------------


def test_what_is_written_is_read(path):
    folder = DataFolder(path)
    assert (folder.atlas, folder.roi_labels, folder.n_rois) == ("abc", LABELS, 3)
    for i, n in enumerate((10, 7, 10, 10)):
        np.testing.assert_array_equal(folder.series(i), series(i, n).astype(np.float32))
    assert folder.runs["participant_id"].tolist() == ["p0", "p1", "p2", "p0"]
    assert folder.runs["run"].tolist() == ["01", "01", "01", "02"]
    assert folder.runs["session"].tolist() == ["01"] * 4
    assert folder.runs["tr"].tolist() == [2.0, 0.735, 2.0, 2.0]
    assert folder.runs["age"][0] == 31.25
    assert folder.runs["age"].isna().tolist() == [False, True, True, True]
    assert folder.runs["sex"][2] == "NA"  # a value, unlike n/a
    described = json.loads((path / "dataset.json").read_text())
    assert (described["n_runs"], described["n_participants"]) == (4, 3)
    assert described["provenance"] == {"source": "test"}


def test_the_array_is_an_ordinary_read_only_npy_file(path):
    array = np.load(path / "timeseries.npy", mmap_mode="r")
    assert array.dtype == np.float32
    assert array.shape == (3 * (10 + 7 + 10 + 10),)
    with pytest.raises(ValueError, match="read-only"):
        DataFolder(path).series(0)[0, 0] = 1


def test_rows_of_splits(path):
    folder = DataFolder(path)
    assert folder.rows().tolist() == [0, 1, 2, 3]
    assert folder.rows("train").tolist() == [0, 3]
    assert folder.rows(["valid", "test"]).tolist() == [1, 2]
    with pytest.raises(UserError, match=r"'vaild' is not one of.*Did you mean 'valid'"):
        folder.rows("vaild")


def test_a_pickled_folder_carries_no_data(path):
    folder = DataFolder(path)
    sent = pickle.dumps(folder)
    assert len(sent) < 500
    np.testing.assert_array_equal(pickle.loads(sent).series(1), folder.series(1))


def test_writing_takes_no_memory_for_the_data(tmp_path):
    run = np.random.default_rng(0).normal(size=(3, 20_000)).astype(np.float32)
    tracemalloc.start()
    with writer(tmp_path / "big") as out:
        for i in range(5):
            out.add_run(run, participant_id=f"p{i}", tr=1.0)
        small = tracemalloc.get_traced_memory()[1]
        for i in range(5, 40):
            out.add_run(run, participant_id=f"p{i}", tr=1.0)
        large = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert large - small < run.nbytes // 2


# --- bad ROIs ------------------------------------------------------------------------------------


def test_constant_and_non_finite_rois_are_reported_and_stored_as_zeros(tmp_path):
    first, second, third = series(0), series(1), series(2)
    first[0] = 7.1
    second[1, 3], second[2, 0] = np.nan, -np.inf
    third[0] = 1e6 + 0.01 * np.arange(10)  # varies by less than float32 can tell
    with writer(tmp_path / "x") as out:
        assert out.add_run(first, participant_id="p0", tr=2) == ["a"]
        assert out.add_run(second, participant_id="p1", tr=2) == ["b", "c"]
        assert out.add_run(third, participant_id="p2", tr=2) == ["a"]
        assert out.add_run(series(3), participant_id="p3", tr=2) == []
    folder = DataFolder(tmp_path / "x")
    assert folder.runs["bad_rois"].fillna("n/a").tolist() == ["a", "b;c", "a", "n/a"]
    assert folder.bad_roi_mask(1).tolist() == [False, True, True]
    assert not folder.bad_roi_mask(3).any()
    assert not folder.series(1)[1:].any()
    assert not folder.series(0)[0].any()
    assert not folder.series(2)[0].any()
    assert np.isfinite(folder.flat).all()
    assert folder.rows(bad_rois="exclude").tolist() == [3]
    assert first[0, 0] == 7.1  # the caller's array is left alone


def test_values_beyond_float32_are_bad(tmp_path):
    wide = series(0)
    wide[1, 1] = 1e39
    with writer(tmp_path / "x") as out:
        assert out.add_run(wide, participant_id="p0", tr=2) == ["b"]


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"series": np.ones((4, 10))}, r"run q/01/01: shape \(4, 10\), expected \(3, T\)"),
        ({"series": np.ones((3, 1))}, "two frames or more"),
        ({"series": np.ones((3, 10))}, "every ROI is constant"),
        ({"series": np.full((3, 9), "x")}, "expected real numbers"),
        ({"participant_id": "p0"}, "is in .* already"),
        ({"participant_id": "p0", "run": "02", "split": "valid"}, "other runs are in 'train'"),
        ({"participant_id": None}, "must all be given"),
        ({"tr": 0}, "tr is 0, it must be a positive number of seconds"),
        ({"tr": float("nan")}, "positive number"),
        ({"tr": "fast"}, "tr is 'fast'"),
        ({"split": "validation"}, "split 'validation' is not one of train, valid, test"),
        ({"note": "two\twords"}, "tab or line break"),
        ({"frames": 3}, "'frames' cannot be the name of a phenotype"),
        ({"scores": [1, 2]}, "list cannot be a cell"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_and_not_written(tmp_path, changed, message):
    with writer(tmp_path / "x") as out:
        out.add_run(series(0), participant_id="p0", tr=2)
        arguments = {"series": series(1), "participant_id": "q", "tr": 2} | changed
        with pytest.raises(UserError, match=message):
            out.add_run(arguments.pop("series"), **arguments)
        out.add_run(series(2), participant_id="p2", tr=2)
    folder = DataFolder(tmp_path / "x")
    assert folder.runs["participant_id"].tolist() == ["p0", "p2"]
    np.testing.assert_array_equal(folder.series(1), series(2).astype(np.float32))


@pytest.mark.parametrize("labels", [(), ("a", "a"), ("a", "b;c"), ("a", ""), ("a", "n/a")])
def test_roi_labels_must_be_unique_names(tmp_path, labels):
    with pytest.raises(UserError):
        writer(tmp_path / "x", roi_labels=labels)


def test_an_existing_folder_is_never_overwritten(path):
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(UserError, match="already holds a data set"):
        writer(path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_folder_without_runs_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="No run was written"), writer(tmp_path / "x"):
        pass
    assert list((tmp_path / "x").iterdir()) == []


# --- interruption --------------------------------------------------------------------------------


def add_people(out, numbers):
    for i in numbers:
        if (f"p{i}", "01", "01") not in out.written:
            out.add_run(series(i, 5 + i), participant_id=f"p{i}", tr=2, number=i)


def test_an_interrupted_write_resumes_to_the_same_folder(tmp_path):
    with writer(tmp_path / "whole") as out:
        add_people(out, range(6))
    with pytest.raises(TypeError), writer(tmp_path / "cut") as out:
        add_people(out, [0, 1, 2, None])  # fails at the last
    with pytest.raises(UserError, match="is unfinished"):
        DataFolder(tmp_path / "cut")
    with pytest.raises(UserError, match="already holds"):
        writer(tmp_path / "cut")
    with (tmp_path / "cut/timeseries.npy").open("ab") as file:
        file.write(b"half a run")
    with writer(tmp_path / "cut", resume=True) as out:
        assert out.written == {(f"p{i}", "01", "01") for i in range(3)}
        add_people(out, range(6))
    for name in ("timeseries.npy", "participants.tsv", "dataset.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(list((tmp_path / "cut").iterdir())) == 3


KILLED = """
import os, sys
sys.path.insert(0, {root!r})
from src.datasets.folder import writer as folder_writer
folder_writer._COMMIT_SECONDS = 0
from tests.datasets.folder.test_folder import add_people, writer
with writer({path!r}) as out:
    add_people(out, range(3))
    os._exit(9)
"""


def test_runs_on_disk_survive_a_kill(tmp_path, request):
    root, path = str(request.config.rootpath), str(tmp_path / "x")
    script = KILLED.format(root=root, path=path)
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    journal = tmp_path / "x/writing.jsonl"
    torn = journal.read_bytes()[:-5] + "ä".encode()[:1]  # the last line, within a character
    journal.write_bytes(torn)
    with writer(path, resume=True) as out:
        assert len(out.written) == 2
        add_people(out, range(3))
    np.testing.assert_array_equal(DataFolder(path).series(2), series(2, 7).astype(np.float32))


def test_a_finished_folder_takes_more_runs(path):
    normalization = path / "normalization.npz"
    normalization.touch()
    with writer(path, resume=True) as out:
        assert len(out.written) == 4
    assert normalization.exists()  # nothing was added, nothing was changed
    with writer(path, resume=True) as out:
        out.add_run(series(9), participant_id="p9", tr=2.0, site="008")
        with pytest.raises(UserError, match="other runs are in 'valid'"):
            out.add_run(series(9), participant_id="p1", run="02", tr=2.0)
    folder = DataFolder(path)
    assert len(folder.runs) == 5
    assert folder.runs["age"][0] == 31.25
    assert (path / "participants.tsv").read_text().splitlines()[2].split("\t")[-1] == "007"
    np.testing.assert_array_equal(folder.series(1), series(1, 7).astype(np.float32))
    assert not normalization.exists()  # it was computed from other runs


def test_resuming_needs_the_same_rois_in_the_same_order(path):
    with pytest.raises(UserError, match="another order"):
        writer(path, roi_labels=("b", "a", "c"), resume=True)


def test_lost_data_are_noticed_on_resume(path):
    (path / "timeseries.npy").write_bytes((path / "timeseries.npy").read_bytes()[:-4])
    with pytest.raises(UserError, match="data were lost"):
        writer(path, resume=True)


def test_a_full_disk_during_the_journal_leaves_it_readable(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_writer, "_COMMIT_SECONDS", 1e9)
    out = writer(tmp_path / "x").__enter__()
    add_people(out, range(2))
    with (tmp_path / "x/writing.jsonl").open("ab") as journal:
        journal.write(b'{"participant_id": "p0", "ses')  # an attempt that failed half-way
    out.__exit__(OSError, OSError("disk full"), None)
    with writer(tmp_path / "x", resume=True) as out:
        assert len(out.written) == 2


# --- damage --------------------------------------------------------------------------------------


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("p2\t01\t01\t10", "p2\t01\t01\t11", "rows were added, removed or sorted"),
        ("p2\t01", "p1\t02", "more than one split, first 'p1'"),
        ("\ttest\t", "\ttesting\t", "line 4: split is 'testing'"),
        ("\t0.735\t", "\tfast\t", "line 3: tr is 'fast'"),
        ("\t7\t", "\t-7\t", "line 3: frames is '-7'"),
        ("p0\t01\t02", "p0\t01\t01", "line 5: the run is 'p0/01/01', it must be listed once"),
        ("\tframes\t", "\tlength\t", "lacks the column frames"),
        ("\ttrain\tn/a\t", "\ttrain\tB\t", "bad_rois names 'B'"),
    ],
)
def test_an_edited_table_that_is_wrong_is_refused(path, old, new, message):
    edit(path / "participants.tsv", old, new)
    with pytest.raises(UserError, match=message):
        DataFolder(path)


def test_sorted_rows_are_refused_but_splits_and_phenotypes_may_change(path):
    table = path / "participants.tsv"
    edit(table, "\ttest\t", "\tvalid\t")
    edit(table, "31.25", "32")
    assert DataFolder(path).rows("valid").tolist() == [1, 2]
    head, first, *rest = table.read_text().splitlines(keepends=True)
    table.write_text("".join([head, *rest, first]))
    with pytest.raises(UserError, match="sorted"):
        DataFolder(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("timeseries.npy", b"\x93NUMPY", "damaged or cut short"),
        ("timeseries.npy", b"", "damaged or cut short"),
        ("dataset.json", b"{", "is not JSON"),
        ("dataset.json", b'{"format": 7}', "'format' must be 1"),
        ("participants.tsv", b"", "not a tab-separated table"),
    ],
)
def test_damaged_files_are_refused(path, name, content, message):
    (path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        DataFolder(path)


def test_missing_and_truncated_files_are_refused(path, tmp_path):
    with pytest.raises(UserError, match=r"lacks dataset.json, participants.tsv, timeseries.npy"):
        DataFolder(tmp_path / "nothing")
    (path / "timeseries.npy").write_bytes((path / "timeseries.npy").read_bytes()[:-40])
    with pytest.raises(UserError, match="cut short"):
        DataFolder(path)
    np.save(path / "timeseries.npy", np.zeros(7, dtype=np.float32))
    with pytest.raises(UserError, match=r"holds float32 \(7,\)"):
        DataFolder(path)
