"""The data set of clips: values, sampling, determinism and refusals."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from src.datasets.clip_input import ClipInput
from src.datasets.fmri import FMRIDataset
from src.datasets.folder import DataFolder, FolderWriter
from src.datasets.folder.statistics import robust_statistics
from src.utils.errors import UserError

CROP = (12, 32)


def clips_of(data_dir, split, crop_size=CROP, clips="random", seed=0, **options):
    """The data set; robust_frames and every frame unless asked for otherwise."""
    defaults = {"normalization": "robust_frames"}
    if "target_tr" not in options:
        defaults["stride"] = 1
    clip_input = ClipInput(crop_size, **defaults | options)
    return FMRIDataset(data_dir, split, clip_input, clips=clips, seed=seed)


def reference(path, row, start, step=1, crop=CROP):
    """robust_frames clip straight from the files, in float64."""
    folder = DataFolder(path)
    train = np.concatenate([folder.series(r) for r in folder.rows("train")], axis=1)
    q1, median, q3 = np.percentile(train.astype(np.float64), (25, 50, 75), axis=1)[..., None]
    frames = start + step * np.arange(crop[1])
    return (folder.series(row)[:, frames] - median) / (q3 - q1)


def spoil_run_1(series, i):
    if i == 1:
        series[4], series[7, 3] = 5, np.nan


# --- values ----------------------------------------------------------------------------------


def test_items_are_normalised_clips_of_the_split(make_folder):
    path = make_folder()
    dataset = clips_of(path, "train", CROP, clips="center")
    assert len(dataset) == 4
    assert dataset.rows.tolist() == [0, 1, 2, 5]
    assert dataset.participant_ids.tolist() == ["p0", "p1", "p2", "p0"]
    for i, row in enumerate(dataset.rows):
        item = dataset[i]
        assert item["row"] == row
        assert item["fmri"].shape == (1, *CROP)
        assert item["fmri"].dtype == torch.float32
        start = (DataFolder(path).frames[row] - 32) // 2
        np.testing.assert_allclose(item["fmri"][0], reference(path, row, start), atol=1e-4)


@pytest.mark.parametrize("split", [["valid", "test"], np.array([3, 4])])
def test_splits_and_rows(make_folder, split):
    assert clips_of(make_folder(), split, CROP).rows.tolist() == [3, 4]


def test_stride_and_random_start(make_folder):
    path = make_folder(frames=(110,) * 5)
    dataset = clips_of(path, "train", CROP, stride=3)
    possible = np.stack([reference(path, 1, start, step=3) for start in range(110 - 93)])
    starts = set()
    for epoch in range(200):
        clip = dataset[1, epoch]["fmri"].numpy()
        matches = np.flatnonzero(np.abs(possible - clip).max(axis=(1, 2)) < 1e-4)
        assert len(matches) == 1
        starts.add(int(matches[0]))
    assert starts == set(range(17))


def test_evenly_spread_clips(make_folder):
    path = make_folder()
    dataset = clips_of(path, "valid", CROP, clips=3)
    assert len(dataset) == 3
    assert dataset.participant_ids.tolist() == ["p3"] * 3
    for j, start in enumerate((0, 14, 28)):
        np.testing.assert_allclose(dataset[j]["fmri"][0], reference(path, 3, start), atol=1e-4)
    two_runs = clips_of(path, ["valid", "test"], CROP, clips=2)
    assert [two_runs[i]["row"] for i in range(len(two_runs))] == [3, 3, 4, 4]


def test_runs_of_different_tr_are_brought_to_one(tmp_path):
    seconds = {0.5: np.arange(120) * 0.5, 0.8: np.arange(90) * 0.8, 2.0: np.arange(40) * 2.0}
    with FolderWriter(tmp_path / "x", roi_labels=["a", "b"], atlas="x", provenance={}) as writer:
        for tr, t in seconds.items():
            writer.add_run(np.stack([t, 3 * t]), participant_id=f"tr{tr}", tr=tr)
    options = {"target_tr": 2.0, "normalization": "none", "clips": "center"}
    dataset = clips_of(tmp_path / "x", "train", (2, 16), **options)
    for item in dataset:
        a, b = item["fmri"][0]
        torch.testing.assert_close(a.diff(), torch.full((15,), 2.0), rtol=0, atol=1e-4)
        torch.testing.assert_close(b, 3 * a)
    with pytest.raises(UserError, match="finer than the TR of 2 s"):
        clips_of(tmp_path / "x", "train", (2, 16), **options | {"target_tr": 1.0})


@pytest.mark.parametrize("method", ["zscore_sample", "zscore_roi", "none"])
def test_other_normalisations(make_folder, method):
    dataset = clips_of(make_folder(), "train", CROP, normalization=method)
    clip = dataset[0]["fmri"][0]
    assert dataset.clip_input.stats is None
    if method == "none":
        assert clip.mean() > 400
    else:
        over = None if method == "zscore_sample" else 1
        np.testing.assert_allclose(clip.numpy().mean(over), 0, atol=1e-4)
        np.testing.assert_allclose(clip.numpy().std(over), 1, atol=1e-4)


def test_statistics_of_a_checkpoint_are_used(make_folder):
    path = make_folder()
    stats = {"median": torch.zeros(12), "iqr": torch.full((12,), 2.0)}
    half = clips_of(path, "test", CROP, stats=stats)[0]["fmri"]
    as_is = clips_of(path, "test", CROP, normalization="none")[0]["fmri"]
    torch.testing.assert_close(half, as_is / 2)
    assert not (path / "normalization.npz").exists()
    with pytest.raises(UserError, match="the statistics given: median must be 12"):
        clips_of(path, "test", CROP, stats={"median": np.zeros(3), "iqr": np.ones(3)})


# --- bad ROIs and short runs -----------------------------------------------------------------


def test_runs_with_bad_rois_are_left_out_and_counted(make_folder, caplog):
    dataset = clips_of(make_folder(spoil=spoil_run_1), "train", CROP)
    assert dataset.rows.tolist() == [0, 2, 5]
    assert "1 of 4 runs left out" in caplog.text
    with pytest.raises(UserError, match="all 1 have a bad ROI"):
        clips_of(dataset.folder.path, np.array([1]), CROP)


@pytest.mark.parametrize("method", ["robust", "robust_frames"])
@pytest.mark.parametrize(
    ("options", "left_out"),
    [({"bad_rois": "exclude"}, 1), ({"short_runs": "skip", "bad_rois": "zero"}, 2)],
)
def test_runs_that_are_left_out_are_in_no_statistic(make_folder, method, options, left_out):
    """A run with a bad ROI, or too short for a clip, whose other values are far away."""

    def spoil(series, i):
        series += 300 * np.random.default_rng(i % 5).standard_normal((len(series), 1))
        if i == left_out == 1:
            series[4] = 5
        if i == left_out:
            series[5:] += 1e6

    frames = [60] * 6
    frames[2] = 20
    path = make_folder(frames=tuple(frames), spoil=spoil)
    options = {"normalization": method, "short_runs": "pad"} | options
    stats = clips_of(path, "train", **options).clip_input.stats
    assert (stats["iqr"][5:] < 1e5).all()
    folder = DataFolder(path)
    used = [row for row in folder.rows("train") if row != left_out]
    expected = robust_statistics(folder, method, np.array(used))
    np.testing.assert_array_equal(stats["median"], expected["median"])
    # The same file holds, beside them, those of a data set that keeps the run.
    kept = clips_of(path, "train", **options | {"bad_rois": "zero", "short_runs": "pad"})
    assert (kept.clip_input.stats["iqr"][5:] > stats["iqr"][5:]).all()
    again = clips_of(path, "train", **options).clip_input.stats
    np.testing.assert_array_equal(again["median"], expected["median"])


@pytest.mark.parametrize("method", ["robust", "zscore_sample", "zscore_roi", "none"])
def test_or_kept_with_those_rois_at_zero(make_folder, method):
    path = make_folder(spoil=spoil_run_1)
    dataset = clips_of(path, "train", CROP, bad_rois="zero", normalization=method)
    assert dataset.rows.tolist() == [0, 1, 2, 5]
    clip = dataset[1]["fmri"][0]
    assert not clip[[4, 7]].any()
    others = clip[[r for r in range(12) if r not in (4, 7)]]
    assert (others.std(1) > 0).all()
    assert torch.isfinite(clip).all()
    if method == "zscore_sample":  # the zeros of the bad ROIs are in neither mean nor SD
        assert abs(others.mean()) < 1e-4
        assert abs(others.std() - 1) < 0.01


def test_short_runs_are_refused_padded_or_skipped(make_folder, caplog):
    path = make_folder(frames=(60, 25, 60, 60, 60))
    with pytest.raises(
        UserError, match=r"1 of 3 runs are too short .*p1/01/1 with 25 frames of the 32"
    ):
        clips_of(path, "train", CROP)
    padded = clips_of(path, "train", CROP, short_runs="pad")
    clip = padded[1, 7]["fmri"][0]
    np.testing.assert_allclose(clip[:, :25], reference(path, 1, 0, crop=(12, 25)), atol=1e-4)
    assert not clip[:, 25:].any()
    assert "too short" in caplog.text
    skipped = clips_of(path, "train", CROP, short_runs="skip")
    assert skipped.rows.tolist() == [0, 2]
    with pytest.raises(UserError, match="3 of 3 runs are too short"):
        clips_of(path, "train", (12, 64), short_runs="skip")
    strided = clips_of(path, "train", (12, 24), stride=2, short_runs="pad")
    assert strided[1]["fmri"][0, :, 12].any()  # frame 24, the run's last
    assert not strided[1]["fmri"][0, :, 13:].any()


def test_the_global_signal_of_a_run_with_a_bad_roi_and_padding(make_folder):
    path = make_folder(frames=(60, 25, 60, 60, 60), spoil=spoil_run_1)
    options = {"short_runs": "pad", "bad_rois": "zero"}
    plain = clips_of(path, "train", CROP, **options)
    cleaned = clips_of(path, "train", CROP, clip_sd=1.0, global_signal="remove", **options)
    before, clip = plain[1]["fmri"][0, :, :25].clamp(-1, 1), cleaned[1]["fmri"][0]
    good = [r for r in range(12) if r not in (4, 7)]
    expected = before[good] - before[good].mean(dim=0)
    torch.testing.assert_close(clip[good, :25], expected)
    assert not clip[[4, 7]].any()
    assert not clip[:, 25:].any()
    again = pickle.loads(pickle.dumps(cleaned))  # as a spawned worker has it
    assert torch.equal(again[1]["fmri"], cleaned[1]["fmri"])


# --- determinism and workers -----------------------------------------------------------------


def test_the_draw_is_the_same_for_any_number_of_workers(make_folder):
    dataset = clips_of(make_folder(), "train", CROP, seed=3)
    order = [(i, epoch) for epoch in (0, 5) for i in range(len(dataset))]
    first, *others = (
        torch.cat(
            [
                batch["fmri"]
                for batch in DataLoader(dataset, 2, sampler=order, num_workers=n, **context)
            ]
        )
        for n, context in ((0, {}), (2, {}), (1, {"multiprocessing_context": "spawn"}))
    )
    assert all(torch.equal(first, other) for other in others)
    assert not torch.equal(first[:4], first[4:])
    assert torch.equal(dataset[1]["fmri"], dataset[1, 0]["fmri"])
    other_seed = clips_of(dataset.folder.path, "train", CROP, seed=4)
    assert not torch.equal(torch.stack([other_seed[i]["fmri"] for i in range(4)]), first[:4])


def test_a_pickled_data_set_carries_no_data(make_folder):
    dataset = clips_of(make_folder(frames=(5000,) * 5), "train", CROP)
    sent = pickle.dumps(dataset)
    assert len(sent) < 10_000
    assert torch.equal(pickle.loads(sent)[2]["fmri"], dataset[2]["fmri"])


def test_items_are_copies_and_end_where_the_data_set_ends(make_folder):
    path = make_folder(frames=(32,) * 5)
    dataset = clips_of(path, "train", CROP, normalization="none")
    before = (path / "timeseries.npy").read_bytes()
    dataset[0]["fmri"].zero_()
    assert (path / "timeseries.npy").read_bytes() == before
    assert len(list(dataset)) == 3
    assert torch.equal(dataset[-1]["fmri"], dataset[2]["fmri"])
    with pytest.raises(IndexError):
        dataset[3]
    with pytest.raises(IndexError, match="starts at 0 to 0, not 1"):
        dataset.clip(0, 1)


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"crop_size": (13, 32)}, "crop_size asks for 13 ROIs, .* has 12"),
        ({"split": "trian"}, "Did you mean 'train'"),
        ({"split": np.array([], dtype=int)}, "has no run"),
        ({"split": np.array([0, 9])}, "has rows 0 to 5"),
        ({"split": np.array([0.5])}, "whole numbers"),
        ({"normalization": "zscore"}, "Did you mean 'zscore_"),
        ({"short_runs": "padd"}, "Did you mean 'pad'"),
        ({"bad_rois": "drop"}, "one of exclude, zero"),
        ({"clips": 0}, "random, center or a number above 0"),
        ({"clips": "centre"}, "random, center or a number above 0"),
        ({"target_tr": -1.0}, "target_tr is -1"),
        ({"stride": 0}, "stride is 0"),
        ({"stride": None}, "how runs are resampled is not known"),
        ({"normalization": None}, "how clips are normalised is not known"),
    ],
)
def test_options_that_do_not_fit_are_refused(make_folder, changed, message):
    options = {"split": "train", "crop_size": CROP} | changed
    with pytest.raises(UserError, match=message):
        clips_of(make_folder(), **options)
