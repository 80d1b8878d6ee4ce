"""What clips look like to the encoder: offsets and scale, and folders that differ in them."""

import numpy as np
import pytest

from src.datasets.clip_input import ClipInput
from src.datasets.fmri import FMRIDataset
from src.datasets.input_profile import InputProfile, input_mismatch

CROP = (12, 32)
PEOPLE = 9


@pytest.fixture
def folders(make_folder):
    """Two folders of the same fluctuations: people and ROIs with offsets, and with none."""

    def with_offsets(series, i):
        series += np.random.default_rng(i).normal(0, 4000, (len(series), 1))

    def without(series, i):
        series -= series.mean(axis=1, keepdims=True)

    options = {"frames": (60,) * PEOPLE, "splits": ("train",) * PEOPLE}
    return (
        make_folder("offsets", spoil=with_offsets, **options),
        make_folder("none", spoil=without, **options),
    )


def profile_of(folder, method, stats=None):
    return InputProfile.from_dataset(
        FMRIDataset(folder, "train", ClipInput(CROP, method, stats, stride=1))
    )


def test_a_profile_is_the_share_of_offsets_and_the_scale_of_each_roi(folders):
    dataset = FMRIDataset(folders[0], "train", ClipInput(CROP, "none", stride=1), clips="center")
    clips = np.stack([dataset[i]["fmri"][0] for i in range(PEOPLE)]).astype(np.float64)
    profile = InputProfile.from_dataset(dataset)
    between, within = clips.mean(2).var(0), clips.var(2).mean(0)
    assert profile.offset_share == pytest.approx((between / (between + within)).mean())
    np.testing.assert_allclose(profile.mean, clips.mean((0, 2)), rtol=1e-5)
    np.testing.assert_allclose(profile.offset_sd, np.sqrt(between), rtol=1e-5)
    np.testing.assert_allclose(profile.sd, np.sqrt(within), rtol=1e-5)
    assert InputProfile.from_dict(profile.to_dict()) == profile


def test_robust_keeps_offsets_and_a_z_score_per_roi_removes_them(folders):
    assert profile_of(folders[0], "robust").offset_share > 0.95
    assert profile_of(folders[0], "zscore_sample").offset_share > 0.95
    assert profile_of(folders[0], "zscore_roi").offset_share < 1e-6
    np.testing.assert_allclose(profile_of(folders[0], "zscore_roi").sd, 1, rtol=1e-4)


def test_data_without_the_offsets_of_pretraining_is_said(folders):
    """The statistics of the training data on data without offsets (method 7)."""
    training = FMRIDataset(folders[0], "train", ClipInput(CROP, "robust", stride=1))
    here = profile_of(folders[1], "robust", training.clip_input.stats)
    (said,) = input_mismatch(InputProfile.from_dataset(training), here)
    assert said.startswith("offsets between runs are ")
    assert said.endswith("% of an ROI's variance, in training 100 %")


def test_data_of_another_scale_is_said(folders, make_folder):
    def larger(series, i):
        series -= series.mean(axis=1, keepdims=True)
        series *= 10

    training = profile_of(folders[1], "none")
    other = make_folder("larger", spoil=larger, frames=(60,) * 5)
    (said,) = input_mismatch(training, profile_of(other, "none"))
    assert said.startswith("the SD over time of 12 of 12 ROIs differs by more than a factor of 2")
    assert "median ratio to training 10)" in said or "ratio to training 9" in said


def test_another_level_is_said(folders, make_folder):
    """A robust median that is not that of the data at hand shifts every clip."""

    def shifted(series, i):
        series += 500

    training, other = make_folder("one"), make_folder("two", spoil=shifted)
    (said,) = input_mismatch(profile_of(training, "none"), profile_of(other, "none"))
    assert said == "the mean of 12 of 12 ROIs lies more than 3 SD from that in training"


def test_like_data_and_the_same_method_are_no_mismatch(folders, make_folder):
    def without(series, i):
        series -= series.mean(axis=1, keepdims=True)

    others = make_folder("others", spoil=without, frames=(60,) * 5, seed=0)
    for method in ("zscore_roi", "zscore_sample", "none"):
        assert not input_mismatch(profile_of(folders[1], method), profile_of(others, method))


def test_a_bad_roi_counts_for_nothing(make_folder):
    def spoil(series, i):
        if i == 1:
            series[4] = 5

    path = make_folder(spoil=spoil)
    options = {"bad_rois": "zero", "normalization": "none", "stride": 1}
    dataset = FMRIDataset(path, "train", ClipInput(CROP, **options), clips="center")
    good = [i for i in range(len(dataset)) if dataset.rows[i] != 1]
    clips = np.stack([dataset[i]["fmri"][0, 4] for i in good]).astype(np.float64)
    profile = InputProfile.from_dataset(dataset)
    assert profile.sd[4] == pytest.approx(np.sqrt(clips.var(1).mean()), rel=1e-5)
    (path / "participants.tsv").write_text(
        (path / "participants.tsv").read_text().replace("train\tn/a", "train\troi4")
    )
    dataset = FMRIDataset(path, "train", ClipInput(CROP, **options))
    without = InputProfile.from_dataset(dataset)
    assert np.isnan(without.sd[4])
    assert not input_mismatch(profile, without)
    assert without.to_dict()["sd"][4] is None
    assert np.isnan(InputProfile.from_dict(without.to_dict()).sd[4])
