"""Normalisation of clips."""

import numpy as np
import pytest
import torch

from src.datasets import normalization as norm


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
    torch.testing.assert_close(norm.robust(clip, None, median, 1 / iqr), expected)
    torch.testing.assert_close(norm.robust(clip, BAD, median, 1 / iqr)[~BAD], expected[~BAD])
    assert not norm.robust(clip, BAD, median, 1 / iqr)[BAD].any()


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
    outs.append(norm.robust(clip, bad, ones, ones))
    for out in outs:
        assert out.is_contiguous()
        assert out.data_ptr() != clip.data_ptr()
    assert torch.equal(clip, before)
