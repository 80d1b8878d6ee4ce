"""Which frames a clip takes."""

import numpy as np
import pytest
import torch

from src.datasets.clips import (
    even_starts,
    frame_steps,
    frames_needed,
    random_start,
    samples_available,
    take_clip,
)
from src.utils.errors import UserError


def ramp(n_rois=3, frames=50):
    """Two runs in one flat tensor; in the second, ROI r at frame t is 100 r + t."""
    run = 100.0 * torch.arange(n_rois)[:, None] + torch.arange(frames)
    return torch.cat([torch.full((7,), -1.0), run.flatten()]), (7, n_rois, frames)


def test_steps_by_stride_and_to_a_target_tr():
    tr = np.array([2.0, 0.735, 0.8])
    assert frame_steps(tr, stride=3).tolist() == [3, 3, 3]
    steps = frame_steps(tr, target_tr=2.205)
    assert steps[1] == 3  # exactly, though 2.205 / 0.735 is not in floating point
    np.testing.assert_allclose(steps[[0, 2]], [1.1025, 2.75625])
    assert frame_steps(np.array([2.0]), target_tr=2.0).tolist() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride is 0"),
        ({"stride": 1.5}, "stride is 1.5"),
        ({"target_tr": -1}, "target_tr is -1, it must be seconds above 0"),
        ({"target_tr": 1.5}, "finer than the TR of 2 s"),
    ],
)
def test_impossible_sampling_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        frame_steps(np.array([2.0, 0.7]), **options)


def test_a_run_of_the_length_needed_holds_every_sample_and_a_shorter_one_does_not():
    for step in (1.0, 2.0, 3.0, 1.1025, 2.75625):
        for n in (1, 2, 16, 160):
            needed = int(frames_needed(n, step))
            assert samples_available(needed, step) >= n
            if n > 1:
                assert samples_available(needed - 1, step) < n
    # The published HCP-Aging setting: 478 frames, stride 3, 160 samples (method 7).
    assert frames_needed(160, np.array([3.0])).tolist() == [478]


@pytest.mark.parametrize("step", [1.0, 3.0, 2.5])
def test_a_clip_of_a_ramp_is_a_ramp(step):
    flat, run = ramp()
    needed = int(frames_needed(16, step))
    for start in (0, 50 - needed):
        clip = take_clip(flat, run, start, step, 16)
        assert clip.shape == (1, 3, 16)
        expected = 100.0 * torch.arange(3)[:, None] + start + step * torch.arange(16)
        torch.testing.assert_close(clip[0], expected)


def test_whole_steps_are_views_and_interpolation_is_linear():
    flat, run = ramp()
    assert take_clip(flat, run, 2, 3.0, 5).untyped_storage().data_ptr() == flat.data_ptr()
    noise = torch.randn(1, 30)
    clip = take_clip(noise.flatten(), (0, 1, 30), 4, 1.25, 9)[0, 0]
    expected = np.interp(4 + 1.25 * np.arange(9), np.arange(30), noise[0].numpy())
    np.testing.assert_allclose(clip.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_even_starts():
    assert even_starts(31, 1).tolist() == [15]
    assert even_starts(31, 3).tolist() == [0, 15, 30]
    assert even_starts(1, 4).tolist() == [0, 0, 0, 0]
    assert even_starts(4, 6).tolist() == [0, 1, 1, 2, 2, 3]


def test_random_starts_are_uniform_and_depend_on_all_three_numbers():
    starts = np.array(
        [random_start(s, e, r, 11) for s in range(6) for e in range(30) for r in range(60)]
    )
    counts = np.bincount(starts, minlength=11)
    expected = len(starts) / 11
    assert counts.size == 11
    assert ((counts - expected) ** 2 / expected).sum() < 29.6  # chi-square, 10 df, p = .001
    grid = starts.reshape(6, 30, 60)
    for axis in range(3):
        same = (np.diff(grid, axis=axis) == 0).mean()
        assert abs(same - 1 / 11) < 0.02
    assert random_start(3, 4, 5, 1000) == random_start(3, 4, 5, 1000)
    assert random_start(0, 0, 0, 1) == 0
    assert 0 <= random_start(-1, 0, 0, 5) < 5
