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
    outs.append(norm.normalizer("none", 3.0, "remove")(clip, bad))
    for out in outs:
        assert out.is_contiguous()
        assert out.data_ptr() != clip.data_ptr()
    assert torch.equal(clip, before)


# --- after the normalisation -------------------------------------------------------------------


@pytest.mark.parametrize("bad", [None, BAD])
def test_values_are_clamped_and_then_the_global_signal_goes(clip, bad):
    clip[0, 3] += 1e4  # beyond the limit: clamped after the removal, it would stay in its frame
    normalize = norm.normalizer("zscore_roi", clip_sd=1.5, global_signal="remove")
    good = [r for r in range(6) if bad is None or not bad[r]]
    expected = np.zeros((6, 40))
    plain = norm.zscore_roi(clip, None).numpy().astype(np.float64)
    for t in range(40):
        values = [min(max(plain[r, t], -1.5), 1.5) for r in good]
        for r, value in zip(good, values, strict=True):
            expected[r, t] = value - sum(values) / len(values)
    np.testing.assert_allclose(normalize(clip[None], bad)[0], expected, atol=1e-5)
    assert bad is None or not normalize(clip, bad)[bad].any()
    assert np.abs(expected).max() > 1.5  # so that the order shows


def test_a_bad_roi_is_no_part_of_the_global_signal(clip):
    normalize = norm.normalizer("none", global_signal="remove")
    spoilt = clip.clone()
    spoilt[BAD] = torch.tensor([torch.nan, 1e9])[:, None]
    assert torch.equal(normalize(spoilt, BAD), normalize(clip, BAD))
    assert not normalize(clip, torch.ones(6, dtype=torch.bool)).any()


def test_either_step_alone(clip):
    plain = norm.zscore_sample(clip, None)
    clamped = norm.normalizer("zscore_sample", clip_sd=0.5)(clip, None)
    assert torch.equal(clamped, plain.clamp(-0.5, 0.5))
    removed = norm.normalizer("zscore_sample", global_signal="remove")(clip, None)
    torch.testing.assert_close(removed, plain - plain.mean(dim=0))


def test_without_them_the_function_is_that_of_the_method():
    assert norm.normalizer("zscore_sample") is norm.zscore_sample


def test_clips_of_a_batch_do_not_see_each_other(clip):
    normalize = norm.normalizer("robust", 2.0, "remove", median=np.ones(6), iqr=np.full(6, 50.0))
    both = torch.stack([clip, 3 * clip])
    assert torch.equal(normalize(both, BAD)[0], normalize(clip, BAD))
