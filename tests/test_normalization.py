"""Normalisation of clips and the robust statistics of a folder."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from src.datasets import normalization as norm
from src.datasets.folder import DataFolder
from src.utils.errors import UserError


@pytest.fixture
def clip():
    rng = np.random.default_rng(0)
    values = rng.normal(rng.uniform(100, 9000, (6, 1)), rng.uniform(20, 80, (6, 1)), (6, 40))
    return torch.from_numpy(values.astype(np.float32))


BAD = torch.tensor([False, True, False, False, True, False])


# --- clips -----------------------------------------------------------------------------------


def test_robust(clip):
    median, iqr = torch.rand(6, 1) * 100, torch.rand(6, 1) + 1
    expected = (clip - median) / iqr
    torch.testing.assert_close(norm.robust(clip, median, 1 / iqr, None), expected)
    torch.testing.assert_close(norm.robust(clip, median, 1 / iqr, BAD)[~BAD], expected[~BAD])
    assert not norm.robust(clip, median, 1 / iqr, BAD)[BAD].any()


@pytest.mark.parametrize("bad", [None, BAD])
def test_zscore_sample(clip, bad):
    good = slice(None) if bad is None else ~bad
    values = clip.numpy()[good].astype(np.float64)
    out = norm.zscore_sample(clip[None], bad)[0]
    np.testing.assert_allclose(out[good], (values - values.mean()) / values.std(), atol=1e-5)
    assert bad is None or not out[bad].any()


@pytest.mark.parametrize("bad", [None, BAD])
def test_zscore_roi(clip, bad):
    clip[2] = 0.1  # constant in this clip, as it may be though it varies over the run
    values = clip.numpy().astype(np.float64)
    expected = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True).clip(1e-5)
    expected[2] = 0
    if bad is not None:
        expected[bad] = 0
    out = norm.zscore_roi(clip[None], bad)[0]
    np.testing.assert_allclose(out, expected, atol=2e-4)
    assert not out[2].any()


def test_a_constant_clip_becomes_zero():
    assert not norm.zscore_sample(torch.full((1, 3, 9), 1000.1), None).any()
    assert not norm.zscore_roi(torch.full((1, 3, 9), 1000.1), None).any()


@pytest.mark.parametrize("bad", [None, BAD])
def test_clips_are_never_changed_in_place(clip, bad):
    before, ones = clip.clone(), torch.ones(6, 1)
    outs = [f(clip, bad) for f in (norm.zscore_sample, norm.zscore_roi, norm.none)]
    outs.append(norm.robust(clip, ones, ones, bad))
    for out in outs:
        assert out.is_contiguous()
        assert out.data_ptr() != clip.data_ptr()
    assert torch.equal(clip, before)


# --- statistics ------------------------------------------------------------------------------


def test_statistics_are_the_quantiles_of_all_training_frames(make_folder):
    folder = DataFolder(make_folder())
    frames = np.concatenate([folder.series(row) for row in folder.rows("train")], axis=1)
    q1, q2, q3 = np.percentile(frames, (25, 50, 75), axis=1)
    stats = norm.robust_statistics(folder)
    np.testing.assert_allclose(stats["median"], q2, rtol=1e-6)
    np.testing.assert_allclose(stats["iqr"], q3 - q1, rtol=1e-4)
    assert (stats["n_runs"], stats["n_participants"]) == (4, 3)


def test_a_bad_roi_is_left_out_of_its_run_only(make_folder):
    def spoil(series, i):
        if i == 1:
            series[3] = 0

    folder = DataFolder(make_folder(spoil=spoil))
    runs = [folder.series(row)[3] for row in folder.rows("train") if row != 1]
    stats = norm.robust_statistics(folder)
    np.testing.assert_allclose(stats["median"][3], np.median(np.concatenate(runs)), rtol=1e-6)


def test_a_small_budget_gives_near_values_and_people_equal_weight(make_folder):
    def spoil(series, i):
        if i == 0:
            series += 1e5  # one person scanned for ten times as long as each other

    path = make_folder(
        frames=(4000, 400, 400, 400, 400), splits=("train",) * 5, spoil=spoil, n_rois=8
    )
    folder = DataFolder(path)
    exact = norm.robust_statistics(folder)
    assert (exact["median"] > 9e4).all()  # most of the frames are that person's
    sampled = norm.robust_statistics(folder, max_values=8 * 1000)
    assert (sampled["median"] < 9e4).all()  # most of the people are not
    others = np.concatenate([folder.series(i) for i in range(1, 5)], axis=1)
    spread = np.subtract(*np.percentile(others, (75, 25), axis=1))
    assert (np.abs(sampled["median"] - np.median(others, axis=1)) < spread).all()


def test_sampled_statistics_agree_with_exact_ones(make_folder):
    folder = DataFolder(make_folder(frames=(3000,) * 4, splits=("train",) * 2, n_rois=4))
    exact = norm.robust_statistics(folder)
    sampled = norm.robust_statistics(folder, max_values=4 * 3000)
    np.testing.assert_allclose(sampled["iqr"], exact["iqr"], rtol=0.1)
    assert (np.abs(sampled["median"] - exact["median"]) < 0.1 * exact["iqr"]).all()
    assert not np.array_equal(sampled["iqr"], exact["iqr"])


def test_more_people_than_the_budget(make_folder):
    folder = DataFolder(make_folder(frames=(30,) * 20, splits=("train",) * 20, n_rois=4))
    stats = norm.robust_statistics(folder, max_values=4 * 7)
    assert stats["n_participants"] <= 7
    assert np.isfinite(stats["iqr"]).all()


def test_rois_without_spread_and_folders_without_training_runs_are_refused(make_folder):
    def always_bad(series, i):
        series[5] = 1

    def mostly_same(series, i):
        series[2] = 3
        series[2, ::10] = 4

    for name, spoil, roi in (("bad", always_bad, "roi5"), ("same", mostly_same, "roi2")):
        with pytest.raises(UserError, match=f"1 ROIs cannot be scaled.*{roi}"):
            norm.robust_statistics(DataFolder(make_folder(name, spoil=spoil)))
    with pytest.raises(UserError, match="no training run"):
        norm.robust_statistics(DataFolder(make_folder("none", splits=("test",) * 3)))


# --- the stored file -------------------------------------------------------------------------


def test_statistics_are_stored_and_read_again(make_folder, monkeypatch):
    folder = DataFolder(make_folder())
    first = norm.stored_statistics(folder)
    monkeypatch.setattr(norm, "robust_statistics", None)  # may not be computed again
    again = norm.stored_statistics(DataFolder(folder.path))
    for name in ("median", "iqr"):
        np.testing.assert_array_equal(first[name], again[name])
        assert again[name].dtype == np.float32


def test_stale_and_damaged_files_are_replaced(make_folder, caplog):
    path = make_folder()
    before = norm.stored_statistics(DataFolder(path))
    table = path / "participants.tsv"
    table.write_text(table.read_text().replace("\ttest\t", "\ttrain\t"))
    after = norm.stored_statistics(DataFolder(path))
    assert "from other training runs" in caplog.text
    assert not np.array_equal(before["median"], after["median"])
    np.testing.assert_array_equal(
        after["median"], norm.robust_statistics(DataFolder(path))["median"]
    )
    (path / "normalization.npz").write_bytes(b"PK not a zip")
    np.testing.assert_array_equal(
        norm.stored_statistics(DataFolder(path))["median"], after["median"]
    )
    assert "cannot be read" in caplog.text


def test_new_phenotypes_do_not_make_it_stale(make_folder, monkeypatch):
    path = make_folder()
    norm.stored_statistics(DataFolder(path))
    table = path / "participants.tsv"
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([head + "\tage", *(row + "\t50" for row in rows)]) + "\n")
    monkeypatch.setattr(norm, "robust_statistics", None)
    norm.stored_statistics(DataFolder(path))


def test_several_processes_may_store_at_once(make_folder):
    folder = DataFolder(make_folder())
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(norm.stored_statistics, [folder] * 8))
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
    monkeypatch.setattr(norm, "replacing", refuse)
    assert norm.stored_statistics(folder)["iqr"].shape == (12,)
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
        norm.check_statistics(stats, 4, "the checkpoint")


def test_statistics_may_be_tensors():
    stats = norm.check_statistics({"median": torch.zeros(4), "iqr": torch.ones(4, 1)}, 4, "it")
    assert stats["iqr"].tolist() == [1, 1, 1, 1]
