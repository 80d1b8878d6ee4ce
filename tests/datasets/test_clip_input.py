"""How a run becomes a clip: what is known, what replaces it, and series in memory."""

import numpy as np
import pytest
import torch

from src.datasets.clip_input import ClipInput
from src.utils.errors import UserError

STATS = {"median": torch.zeros(3), "iqr": torch.full((3,), 2.0)}


def test_state_and_back():
    """What a checkpoint keeps; the statistics of the robust methods as tensors."""
    stats = {name: value.numpy() for name, value in STATS.items()}
    state = ClipInput((3, 32), "robust", stats, target_tr=2.2).to_state()
    assert state["normalization"]["method"] == "robust"
    assert state["sampling"] == {"target_tr": 2.2}
    assert all(torch.equal(state["normalization"][name], STATS[name]) for name in STATS)
    again = ClipInput.from_state((3, 32), state)
    assert (again.normalization, again.sampling) == ("robust", {"target_tr": 2.2})
    assert all(torch.equal(again.stats[name], STATS[name]) for name in STATS)
    nothing = ClipInput.from_state((3, 32), {"normalization": None})
    assert nothing.normalization is nothing.stats is nothing.sampling is None
    assert ClipInput.from_state((3, 32), ClipInput((3, 32)).to_state()).normalization is None


def test_what_follows_the_normalisation_travels_and_older_states_have_none():
    cleaned = ClipInput((3, 32), "robust", STATS, clip_sd=8.0, global_signal="remove")
    state = cleaned.to_state()
    again = ClipInput.from_state((3, 32), state)
    assert again.cleaning == {"clip_sd": 8.0, "global_signal": "remove"}
    assert again.stats.keys() == STATS.keys()
    assert again.describe_values() == "robust, clamped to +-8, global signal removed"
    older = {"normalization": {"method": "robust", **STATS}}
    assert ClipInput.from_state((3, 32), older).cleaning == ClipInput((3, 32)).cleaning
    assert ClipInput((3, 32)).cleaning == {"clip_sd": None, "global_signal": "keep"}
    # Another method of normalisation leaves them, and both can be given another value.
    assert cleaned.changed(normalization="zscore_roi").cleaning == cleaned.cleaning
    nothing = cleaned.changed(clip_sd=None, global_signal="keep")
    assert nothing.cleaning == ClipInput((3, 32)).cleaning


def test_what_is_given_replaces_what_is_known():
    known = ClipInput((3, 32), "robust", STATS, stride=3)
    assert known.changed().stats is STATS
    assert known.changed(normalization="robust", target_tr=2.0).stats is STATS
    assert known.changed(target_tr=2.0).sampling == {"target_tr": 2.0}
    assert known.changed(stride=1, bad_rois="zero").sampling == {"stride": 1}
    # Statistics of one robust method are not those of the other.
    assert known.changed(normalization="robust_frames").stats is None


def test_what_is_not_known_is_completed_and_nothing_else():
    completed = ClipInput((3, 32)).completed()
    assert (completed.normalization, completed.sampling) == ("zscore_sample", {"stride": 1})
    known = ClipInput((3, 32), "none", target_tr=2.0, short_runs="pad").completed()
    assert (known.normalization, known.sampling, known.short_runs) == (
        *("none", {"target_tr": 2.0}, "pad"),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalization": "robus"}, "Did you mean 'robust'"),
        ({"short_runs": "padd"}, "Did you mean 'pad'"),
        ({"bad_rois": "drop"}, "one of exclude, zero"),
        ({"stride": 2, "target_tr": 2.0}, "not both"),
        ({"target_tr": 0.0}, "target_tr is 0"),
        ({"clip_sd": 0.0}, "clip_sd is 0"),
        ({"clip_sd": float("nan")}, "clip_sd is nan"),
        ({"global_signal": "removed"}, "Did you mean 'remove'"),
        ({"crop_size": (1, 32), "global_signal": "remove"}, "one ROI"),
    ],
)
def test_values_that_no_clip_can_have_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        ClipInput(**{"crop_size": (3, 32)} | options)


@pytest.mark.parametrize("method", ["robust", "robust_frames"])
def test_robust_needs_statistics_of_its_rois(method):
    with pytest.raises(UserError, match="median and IQR"):
        _ = ClipInput((3, 32), method).normalize
    with pytest.raises(UserError, match="median must be 4"):
        _ = ClipInput((4, 32), method, STATS).normalize
    clip = torch.randn(1, 3, 32)
    torch.testing.assert_close(ClipInput((3, 32), method, STATS).normalize(clip, None), clip / 2)


# --- series in memory --------------------------------------------------------------------------


def test_a_series_is_resampled_padded_and_its_bad_rois_zero():
    clip_input = ClipInput((3, 32), "none", None, None, 2.0, "pad", "zero")
    ramp = torch.arange(100.0).expand(3, 100).clone()
    ramp[1] = 7.0
    clip = clip_input.clip_of_series(ramp, 0.8)
    steps = clip[0, 0].diff()
    torch.testing.assert_close(steps, torch.full((31,), 2.5))
    assert clip[0, 0, 0] == 10  # the centre: of 100 frames it needs 79, so 22 starts
    assert not clip[0, 1].any()  # a constant ROI counts for nothing
    short = clip_input.clip_of_series(ramp[:, :40], 0.8)
    assert not short[0, :, 16:].any()  # 16 samples of 2.5 frames, then zeros
    slow = clip_input.clip_of_series(ramp, 3.0)
    torch.testing.assert_close(slow[0, 0].diff(), torch.ones(31))  # slower than asked: as it is
    ramp[2, 5] = torch.nan
    assert not clip_input.clip_of_series(ramp, 2.0)[0, 2].any()


def test_a_series_in_memory_is_cleaned_before_it_is_padded():
    """A bad ROI stays 0 and is no part of the mean; so does what a short run lacks."""
    options = {"clip_sd": 20.0, "global_signal": "remove"}
    clip_input = ClipInput((3, 32), "none", None, None, 2.0, "pad", "zero", **options)
    ramp = torch.arange(16.0) * torch.tensor([[1.0], [2.0], [0.0]])
    clip = clip_input.clip_of_series(ramp, 2.0)[0]
    difference = (torch.arange(16.0) - (2 * torch.arange(16.0)).clamp(max=20.0)) / 2
    torch.testing.assert_close(clip[0, :16], difference)
    torch.testing.assert_close(clip[1, :16], -difference)
    assert not clip[2].any()
    assert not clip[:, 16:].any()


def test_a_series_without_a_target_tr_goes_to_two_seconds_and_a_z_score():
    series = torch.randn(3, 200)
    clip = ClipInput((3, 32), stride=3).clip_of_series(series, 0.5)
    start = (200 - 125) // 2
    frames = series[:, start : start + 125 : 4].numpy().astype(np.float64)
    np.testing.assert_allclose(clip[0], (frames - frames.mean()) / frames.std(), atol=1e-5)


@pytest.mark.parametrize(
    ("series", "tr", "said"),
    [
        (torch.randn(4, 50), 2.0, r"must be \[3, frames\], not \(4, 50\)"),
        (torch.randn(3), 2.0, r"must be \[3, frames\], not \(3,\)"),
        (torch.randn(3, 50), 0.0, "TR is 0"),
        (torch.randn(3, 50), None, "TR is None"),
        (torch.randn(3, 50), float("nan"), "TR is nan"),
        (torch.randn(3, 31), 2.0, r"31 frames of 2 s, and a clip of 32 samples 2 s apart needs 32"),
        (torch.randn(3, 78), 0.8, r"78 frames of 0\.8 s.* 2 s apart needs 79"),
        (torch.zeros(3, 50), 2.0, r"3 of 3 ROIs of the series are constant or not finite: ROI 1"),
        (torch.randn(3, 50).index_fill(0, torch.tensor(1), torch.nan), 2.0, "1 of 3 .*: ROI 2"),
    ],
)
def test_series_that_cannot_be_prepared(series, tr, said):
    for given in (series, series.numpy()):
        with pytest.raises(UserError, match=said):
            ClipInput((3, 32)).clip_of_series(given, tr)


def test_arrays_are_series_too():
    series = torch.randn(3, 200)
    clip_input, array = ClipInput((3, 32)), series.numpy().astype(np.float64)
    array.setflags(write=False)  # such as a row of a memory map
    assert torch.equal(
        clip_input.clip_of_series(array, 2.0), clip_input.clip_of_series(series, 2.0)
    )
    with_gradient = series.clone().requires_grad_(True)
    assert not clip_input.clip_of_series(with_gradient, 2.0).requires_grad
