"""Robust statistics of the training runs: values, refusals, and the file that keeps them."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from src.datasets.folder import DataFolder, FolderWriter
from src.datasets.folder import statistics as module
from src.datasets.folder.statistics import (
    check_statistics,
    read_statistics,
    robust_statistics,
    stored_statistics,
)
from src.utils.errors import UserError


def shift_by_person(series, i):
    """Give run i, of person i % 5, an offset of its own, some ROIs more than others."""
    series += 300 * np.random.default_rng(i % 5).standard_normal((len(series), 1))


@pytest.fixture
def offsets(make_folder):
    """A folder whose people differ in their time means; p0 has runs 0 and 5."""
    return DataFolder(make_folder(spoil=shift_by_person))


def train_statistics(folder, method):
    return robust_statistics(folder, method, folder.rows("train"))


# --- robust ----------------------------------------------------------------------------------


def test_robust_is_over_people_of_their_means_over_time(offsets):
    runs = [offsets.series(row).mean(1, dtype=np.float64) for row in (0, 5, 1, 2)]
    people = np.stack([(runs[0] + runs[1]) / 2, *runs[2:]])  # [people, R]
    q1, q2, q3 = np.percentile(people, (25, 50, 75), axis=0)
    stats = train_statistics(offsets, "robust")
    np.testing.assert_allclose(stats["median"], q2, rtol=1e-6)
    np.testing.assert_allclose(stats["iqr"], q3 - q1, rtol=1e-4)
    assert (stats["n_runs"], stats["n_participants"]) == (4, 3)


def test_robust_leaves_a_bad_roi_out_of_its_run_only(make_folder):
    def spoil(series, i):
        shift_by_person(series, i)
        if i in (1, 5):
            series[3] = 0

    folder = DataFolder(make_folder(spoil=spoil))
    means = [folder.series(row)[3].mean(dtype=np.float64) for row in (0, 2)]  # p0's good run, p2
    stats = train_statistics(folder, "robust")
    np.testing.assert_allclose(stats["median"][3], np.mean(means), rtol=1e-6)
    np.testing.assert_allclose(stats["iqr"][3], np.ptp(means) / 2, rtol=1e-4)


def test_robust_keeps_offsets_and_robust_frames_does_not_need_them(make_folder):
    """With offsets of thousands, what differs between clips of ``robust`` is offsets."""

    def spoil(series, i):
        series += 20 * (series.mean(1, keepdims=True) - 1000) * (1 + i / 10)

    folder = DataFolder(make_folder(frames=(60,) * 9, splits=("train",) * 9, spoil=spoil))
    clips = {}
    for method in ("robust", "robust_frames"):
        stats = train_statistics(folder, method)
        clips[method] = np.stack(
            [
                (folder.series(r) - stats["median"][:, None]) / stats["iqr"][:, None]
                for r in range(9)
            ]
        )
    share = clips["robust"].mean(2).var() / clips["robust"].var()
    assert share > 0.9
    assert clips["robust"].std(2).mean() < 0.5 < clips["robust"].mean(2).std()


def test_removed_time_means_are_refused_and_the_alternative_named(tmp_path):
    rng = np.random.default_rng(0)
    with FolderWriter(tmp_path / "x", roi_labels=["a", "b"], atlas="x", provenance={}) as writer:
        for person in range(20):
            series = rng.normal(size=(2, 80))
            series -= series.mean(axis=1, keepdims=True)
            writer.add_run(series, participant_id=f"p{person}", tr=2.0)
    folder = DataFolder(tmp_path / "x")
    with pytest.raises(UserError, match=r"2 ROIs.*20 training people.*a, b.*robust_frames"):
        train_statistics(folder, "robust")
    assert (train_statistics(folder, "robust_frames")["iqr"] > 1).all()


# --- robust_frames ---------------------------------------------------------------------------


def test_robust_frames_is_over_all_training_frames(make_folder):
    folder = DataFolder(make_folder())
    frames = np.concatenate([folder.series(row) for row in folder.rows("train")], axis=1)
    q1, q2, q3 = np.percentile(frames, (25, 50, 75), axis=1)
    stats = train_statistics(folder, "robust_frames")
    np.testing.assert_allclose(stats["median"], q2, rtol=1e-6)
    np.testing.assert_allclose(stats["iqr"], q3 - q1, rtol=1e-4)
    assert (stats["n_runs"], stats["n_participants"]) == (4, 3)


def test_robust_frames_leaves_a_bad_roi_out_of_its_run_only(make_folder):
    def spoil(series, i):
        if i == 1:
            series[3] = 0

    folder = DataFolder(make_folder(spoil=spoil))
    runs = [folder.series(row)[3] for row in folder.rows("train") if row != 1]
    stats = train_statistics(folder, "robust_frames")
    np.testing.assert_allclose(stats["median"][3], np.median(np.concatenate(runs)), rtol=1e-6)


def test_a_small_budget_gives_near_values_and_people_equal_weight(make_folder, monkeypatch):
    def spoil(series, i):
        if i == 0:
            series += 1e5  # one person scanned for ten times as long as each other

    path = make_folder(
        frames=(4000, 400, 400, 400, 400), splits=("train",) * 5, spoil=spoil, n_rois=8
    )
    folder = DataFolder(path)
    exact = train_statistics(folder, "robust_frames")
    assert (exact["median"] > 9e4).all()  # most of the frames are that person's
    monkeypatch.setattr(module, "_SAMPLE_VALUES", 8 * 1000)
    sampled = train_statistics(folder, "robust_frames")
    assert (sampled["median"] < 9e4).all()  # most of the people are not
    others = np.concatenate([folder.series(i) for i in range(1, 5)], axis=1)
    spread = np.subtract(*np.percentile(others, (75, 25), axis=1))
    assert (np.abs(sampled["median"] - np.median(others, axis=1)) < spread).all()


def test_sampled_statistics_agree_with_exact_ones(make_folder, monkeypatch):
    folder = DataFolder(make_folder(frames=(3000,) * 4, splits=("train",) * 2, n_rois=4))
    exact = train_statistics(folder, "robust_frames")
    monkeypatch.setattr(module, "_SAMPLE_VALUES", 4 * 3000)
    sampled = train_statistics(folder, "robust_frames")
    np.testing.assert_allclose(sampled["iqr"], exact["iqr"], rtol=0.1)
    assert (np.abs(sampled["median"] - exact["median"]) < 0.1 * exact["iqr"]).all()
    assert not np.array_equal(sampled["iqr"], exact["iqr"])


def test_more_people_than_the_budget(make_folder, monkeypatch):
    folder = DataFolder(make_folder(frames=(30,) * 20, splits=("train",) * 20, n_rois=4))
    monkeypatch.setattr(module, "_SAMPLE_VALUES", 4 * 7)
    seen = []
    monkeypatch.setattr(
        folder, "series", lambda row: seen.append(row) or type(folder).series(folder, row)
    )
    assert np.isfinite(train_statistics(folder, "robust_frames")["iqr"]).all()
    assert len(seen) <= 7


def test_rois_without_spread_and_folders_without_training_runs_are_refused(make_folder):
    def always_bad(series, i):
        shift_by_person(series, i)
        series[5] = 1

    def mostly_same(series, i):
        shift_by_person(series, i)
        series[2] = 3
        series[2, ::10] = 4

    for name, spoil, roi in (("bad", always_bad, "roi5"), ("same", mostly_same, "roi2")):
        folder = DataFolder(make_folder(name, spoil=spoil))
        for method in ("robust", "robust_frames"):
            with pytest.raises(UserError, match=f"1 ROIs cannot be scaled.*: {roi}"):
                train_statistics(folder, method)
    with pytest.raises(UserError, match="no training run"):
        train_statistics(DataFolder(make_folder("none", splits=("test",) * 3)), "robust")


@pytest.mark.parametrize("method", ["robust", "robust_frames"])
def test_only_the_runs_given_count(offsets, make_folder, method):
    one_less = robust_statistics(offsets, method, np.array([0, 1, 2]))
    assert one_less["n_runs"] == 3

    def spoil(series, i):
        shift_by_person(series, i)
        if i == 5:
            series *= 1000

    other = DataFolder(make_folder("other", spoil=spoil))
    for name, value in robust_statistics(other, method, np.array([0, 1, 2])).items():
        np.testing.assert_array_equal(value, one_less[name])


# --- the stored file -------------------------------------------------------------------------


def refuse_to_compute(monkeypatch):
    def refuse(*args):
        raise AssertionError("computed again")

    monkeypatch.setattr(module, "robust_statistics", refuse)


def stored_of_train(folder, method="robust_frames"):
    return stored_statistics(folder, method, folder.rows("train"))


def test_statistics_are_stored_and_read_again(offsets, monkeypatch):
    """Both methods, and those of all runs and of fewer, side by side in one file."""
    asked = [(m, r) for m in ("robust", "robust_frames") for r in ([0, 1, 2, 5], [0, 1, 2])]
    first = [stored_statistics(offsets, method, np.array(rows)) for method, rows in asked]
    refuse_to_compute(monkeypatch)
    for (method, rows), before in zip(asked, first, strict=True):
        again = stored_statistics(DataFolder(offsets.path), method, np.array(rows))
        for name in ("median", "iqr"):
            np.testing.assert_array_equal(before[name], again[name])
            assert again[name].dtype == np.float32
    assert len({stats["iqr"].tobytes() for stats in first}) == 4
    with np.load(offsets.path / "normalization.npz") as arrays:
        n_runs = sorted(int(arrays[name]) for name in arrays if name.endswith("/n_runs"))
        assert n_runs == [3, 3, 4, 4]
        assert {name.split("/")[0] for name in arrays if "/" in name} == {"robust", "robust_frames"}


def swap_people(path):
    """Exchange the series of the first two training people, of equal length."""
    series = np.load(path / "timeseries.npy")
    size = 12 * 60
    series[:size], series[size : 2 * size] = series[size : 2 * size].copy(), series[:size].copy()
    np.save(path / "timeseries.npy", series)


def move_to_training(path):
    table = path / "participants.tsv"
    table.write_text(table.read_text().replace("\ttest\t", "\ttrain\t"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_people, "6 runs of 5 people then and now, but other people, or other series"),
        (move_to_training, "from 6 runs of 5 people; there are 7 of 6"),
    ],
)
def test_a_file_of_other_training_runs_is_refused(make_folder, change, message):
    path = make_folder(frames=(60,) * 7, splits=("train",) * 5 + ("test",))
    # Seven runs go to six people in turn, so that the seventh is the first person's second.
    before = stored_of_train(DataFolder(path))
    change(path)
    with pytest.raises(UserError) as error:
        stored_of_train(DataFolder(path))
    assert message in str(error.value)
    assert f"rm {path / 'normalization.npz'}" in str(error.value)
    (path / "normalization.npz").unlink()
    after = stored_of_train(DataFolder(path))
    assert change is swap_people or not np.array_equal(before["median"], after["median"])


def test_a_damaged_file_is_computed_anew(make_folder, caplog):
    folder = DataFolder(make_folder())
    before = stored_of_train(folder)
    for content in (b"PK not a zip", b""):
        (folder.path / "normalization.npz").write_bytes(content)
        np.testing.assert_array_equal(stored_of_train(folder)["median"], before["median"])
        assert "normalization.npz cannot be read" in caplog.text
        caplog.clear()
    stored_of_train(folder)
    assert not caplog.text


def test_new_phenotypes_do_not_make_it_stale(make_folder, monkeypatch):
    path = make_folder()
    stored_of_train(DataFolder(path))
    table = path / "participants.tsv"
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([head + "\tage", *(row + "\t50" for row in rows)]) + "\n")
    refuse_to_compute(monkeypatch)
    stored_of_train(DataFolder(path))


def test_several_processes_may_store_at_once(make_folder):
    folder = DataFolder(make_folder())
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(stored_of_train, [folder] * 8))
    assert all(np.array_equal(result["iqr"], results[0]["iqr"]) for result in results)
    assert sorted(os.listdir(folder.path)) == [
        "dataset.json",
        "normalization.npz",
        "participants.tsv",
        "timeseries.npy",
    ]


def test_a_folder_that_cannot_be_written_is_only_a_warning(make_folder, monkeypatch, caplog):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    folder = DataFolder(make_folder())
    monkeypatch.setattr(module, "replacing", refuse)
    assert stored_of_train(folder)["iqr"].shape == (12,)
    assert "could not be written" in caplog.text


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        ({"median": np.zeros(4)}, "'iqr' is missing"),
        ({"median": np.zeros(3), "iqr": np.ones(4)}, "median must be 4 finite numbers"),
        ({"median": np.zeros(4), "iqr": np.array([1, 1, 0, 1])}, "iqr of ROI 2 is 0"),
        ({"median": np.full(4, np.nan), "iqr": np.ones(4)}, "0 of them finite"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(stats, message):
    with pytest.raises(UserError, match=message):
        check_statistics(stats, 4, "the checkpoint")


def test_statistics_may_be_tensors():
    stats = check_statistics({"median": torch.zeros(4), "iqr": torch.ones(4, 1)}, 4, "it")
    assert stats["iqr"].tolist() == [1, 1, 1, 1]


# --- a file that the user names --------------------------------------------------------------


def test_a_file_may_be_that_of_a_folder_or_two_arrays(offsets, tmp_path):
    stored = stored_of_train(offsets)
    read = read_statistics(offsets.path / "normalization.npz", "robust_frames", 12)
    np.savez(tmp_path / "plain.npz", **stored)
    for stats in (read, read_statistics(tmp_path / "plain.npz", "robust", 12)):
        for name in ("median", "iqr"):
            np.testing.assert_array_equal(stats[name], stored[name])


def test_a_file_that_does_not_say_which_statistics_is_refused(offsets, tmp_path):
    path = offsets.path / "normalization.npz"
    stored_of_train(offsets)
    with pytest.raises(UserError, match=r"0 statistics of robust; .* It has: robust_f"):
        read_statistics(path, "robust", 12)
    stored_statistics(offsets, "robust_frames", np.array([0, 1]))
    with pytest.raises(UserError, match="2 statistics of robust_frames"):
        read_statistics(path, "robust_frames", 12)
    np.savez(tmp_path / "other.npz", median=np.zeros(3), iqr=np.ones(3))
    with pytest.raises(UserError, match="median must be 12 finite numbers"):
        read_statistics(tmp_path / "other.npz", "robust", 12)
    (tmp_path / "text.npz").write_text("median")
    for name in ("text.npz", "missing.npz"):
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            read_statistics(tmp_path / name, "robust", 12)
