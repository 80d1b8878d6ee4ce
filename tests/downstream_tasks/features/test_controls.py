"""Controls of time: what each keeps of a clip, exactly, and what it takes away."""

import numpy as np
import pytest
import torch
from scipy.signal import csd
from scipy.stats import chisquare

from downstream_tasks.features import controls
from downstream_tasks.features.registry import REGISTRY

TIME_CONTROLS = (
    "time_permuted_jointly",
    "time_permuted_per_roi",
    "phase_randomised",
    "held_constant",
)
SEEDS = torch.tensor([3, 4, 5])


def clips(frames: int = 160) -> torch.Tensor:
    """Three clips ``[3, 1, 6, frames]``: slow, correlated ROIs at different levels."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((3, 1, 6, frames))
    slow = np.cumsum(noise, axis=-1) * 0.3 + noise[:, :, :1]
    return torch.tensor(slow + 100 * np.arange(6)[:, None], dtype=torch.float32)


def shown(name: str, fmri: torch.Tensor, seeds: torch.Tensor = SEEDS) -> torch.Tensor:
    return REGISTRY[name].function(fmri, seeds)


def correlations(fmri: torch.Tensor) -> np.ndarray:
    return np.stack([np.corrcoef(clip) for clip in fmri[:, 0].double().numpy()])


def lag_one(fmri: torch.Tensor) -> np.ndarray:
    """Correlation of each ROI with itself a frame later, ``[3, 6]``."""
    x = fmri[:, 0].double().numpy()
    return np.array([[np.corrcoef(roi[1:], roi[:-1])[0, 1] for roi in clip] for clip in x])


@pytest.mark.parametrize("name", TIME_CONTROLS)
@pytest.mark.parametrize("frames", [160, 31])
def test_every_control_keeps_shape_type_and_the_mean_of_each_roi(name, frames):
    fmri = clips(frames)
    other = shown(name, fmri)
    assert (other.shape, other.dtype) == (fmri.shape, fmri.dtype)
    torch.testing.assert_close(other.mean(-1), fmri.mean(-1), rtol=0, atol=1e-3)
    assert not torch.equal(other, fmri)


@pytest.mark.parametrize("name", TIME_CONTROLS[:3])
def test_a_clip_depends_on_its_own_seed_only(name):
    fmri = clips()
    together = shown(name, fmri)
    alone = torch.cat([shown(name, fmri[i : i + 1], SEEDS[i : i + 1]) for i in (2, 0, 1)])
    torch.testing.assert_close(together[[2, 0, 1]], alone)
    same_clip = fmri[:1].expand(3, -1, -1, -1)
    a, b, _ = shown(name, same_clip)
    assert (a - b).abs().max() > 0.1


def test_jointly_permuted_frames_are_the_same_frames_in_another_order():
    fmri = clips()
    other = shown("time_permuted_jointly", fmri)
    for here, there in zip(fmri[:, 0], other[:, 0], strict=True):
        frames, permuted = ({tuple(f) for f in x.T.tolist()} for x in (here, there))
        assert frames == permuted
    np.testing.assert_allclose(correlations(other), correlations(fmri), atol=1e-6)
    assert np.abs(lag_one(other)).mean() < 0.1 < 0.5 < lag_one(fmri).mean()


def test_frames_permuted_per_roi_keep_values_and_lose_order_and_connectivity():
    fmri = clips()
    fmri[:, :, 1] = fmri[:, :, 0] + 1  # a correlation of 1
    other = shown("time_permuted_per_roi", fmri)
    torch.testing.assert_close(other.sort(-1).values, fmri.sort(-1).values)
    assert np.abs(correlations(other)[:, 0, 1]).max() < 0.3
    assert np.abs(lag_one(other)).mean() < 0.1


@pytest.mark.parametrize("frames", [160, 31])  # with a Nyquist frequency, and without
def test_randomised_phases_keep_connectivity_and_every_spectrum(frames):
    fmri = clips(frames)
    other = shown("phase_randomised", fmri)
    x, y = (series[:, 0].double().numpy() for series in (fmri, other))
    np.testing.assert_allclose(correlations(other), correlations(fmri), atol=1e-5)
    for here, there in zip(x, y, strict=True):
        spectra = [
            csd(z[:, None], z[None], nperseg=frames, window="boxcar", detrend="constant")[1]
            for z in (here, there)
        ]
        largest = np.abs(spectra[0]).max()
        np.testing.assert_allclose(spectra[1] / largest, spectra[0] / largest, atol=1e-5)
    # The values themselves are others: not a permutation, not a shift.
    assert np.abs(np.sort(y) - np.sort(x)).max() > 0.1
    lagged = np.fft.irfft(np.fft.rfft(x - x.mean(-1, keepdims=True)).conj()
                          * np.fft.rfft(y - y.mean(-1, keepdims=True)), frames)  # fmt: skip
    assert (np.abs(lagged).max(-1) / (frames * x.var(-1))).max() < 0.95


def test_phases_are_uniform_and_permutations_unbiased():
    """Of 4,000 clips with neighbouring seeds."""
    n, frames = 4000, 8
    seeds = torch.arange(n)
    ramp = torch.arange(frames, dtype=torch.float32).expand(n, 1, 2, frames)
    places = shown("time_permuted_per_roi", ramp, seeds)
    for roi in range(2):
        for place in range(frames):
            counts = np.bincount(places[:, 0, roi, place].long().numpy(), minlength=frames)
            assert chisquare(counts).pvalue > 1e-5
    agree = (places[:, 0, 0] == places[:, 0, 1]).float().mean()
    assert agree == pytest.approx(1 / frames, abs=0.01)  # ROIs are independent
    impulse = torch.zeros(n, 1, 1, frames)
    impulse[..., 0] = 1
    spectrum = torch.fft.rfft(shown("phase_randomised", impulse, seeds)[:, 0, 0])
    for frequency in (1, 2, 3):
        turns = (torch.angle(spectrum[:, frequency]).numpy() / (2 * np.pi)) % 1
        counts, _ = np.histogram(turns, bins=10, range=(0, 1))
        assert chisquare(counts).pvalue > 1e-5


def test_random_words_differ_in_every_bit():
    """Neighbouring seeds and neighbouring places share about half of their bits."""
    words = controls.random_words(torch.arange(200), 200).numpy().view(np.uint64)
    assert len(np.unique(words)) == words.size
    bits = np.unpackbits(words.view(np.uint8)).reshape(200, 200, 64)
    assert np.abs(bits.mean(axis=(0, 1)) - 0.5).max() < 0.02
    for axis in (0, 1):
        flips = (np.diff(bits.astype(np.int8), axis=axis) != 0).mean(axis=(0, 1))
        assert np.abs(flips - 0.5).max() < 0.02


def test_held_constant_leaves_the_roi_means():
    fmri = clips()
    held = shown("held_constant", fmri)
    torch.testing.assert_close(held, fmri.mean(-1, keepdim=True).expand(3, 1, 6, 160))
