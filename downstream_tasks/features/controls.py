"""Controls of time: what the encoder is shown in place of the clip.

Each maps normalised clips ``[B, 1, R, T]`` and one seed per clip to clips of the same shape, and
keeps the mean of every ROI. What else is kept tells them apart:

============================  ==============  ===================  =====
control                       FC              spectrum of each ROI  order
============================  ==============  ===================  =====
:func:`permute_jointly`       kept            lost                 lost
:func:`permute_per_roi`       lost            lost                 lost
:func:`randomise_phases`      kept, each lag  kept                 lost
:func:`hold_constant`         lost            lost                 lost
============================  ==============  ===================  =====

Permutations keep the values, and so the variance, of every ROI; held constant it has none. What is
drawn depends on the seed of the clip only, not on its batch or device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

Control = Callable[[Tensor, Tensor], Tensor]

# Constants of splitmix64 (Steele, Lea and Flood 2014), as signed 64-bit integers.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIERS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))
_BITS = 24  # of a random number: float32 holds them exactly


@dataclass(frozen=True)
class ShownAs:
    """Collate samples of :class:`ExampleClips` to a batch, as ``control`` shows them if any.

    In the loader, so that training, validation and frozen features get the same by the same line.
    """

    control: Control | None = None

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = default_collate(samples)
        if self.control is not None:
            batch["fmri"] = self.control(batch["fmri"], batch["seed"])
        return batch


def permute_jointly(fmri: Tensor, seeds: Tensor) -> Tensor:
    """Shuffle the frames, all ROIs alike: FC stays as it is, the order of frames goes."""
    order = random_words(seeds.to(fmri.device), fmri.shape[-1]).argsort(dim=-1)
    return fmri.gather(-1, order[:, None, None].expand(fmri.shape))


def permute_per_roi(fmri: Tensor, seeds: Tensor) -> Tensor:
    """Shuffle the frames of each ROI by itself: order and every relation between ROIs go."""
    rois, frames = fmri.shape[-2:]
    words = random_words(seeds.to(fmri.device), rois * frames)
    return fmri.gather(-1, words.view(fmri.shape).argsort(dim=-1))


def randomise_phases(fmri: Tensor, seeds: Tensor) -> Tensor:
    """Add random phases to the Fourier components, the same for all ROIs (Prichard & Theiler 1994).

    Power and cross spectra stay, and with them FC and the (circular) correlations at every lag:
    all that a linear stationary model knows. Timing and what is not linear go.
    """
    frames = fmri.shape[-1]
    mean = fmri.mean(dim=-1, keepdim=True)  # levels of thousands would cost digits
    spectrum = torch.fft.rfft(fmri - mean)  # [B, 1, R, T // 2 + 1]
    words = random_words(seeds.to(fmri.device), spectrum.shape[-1])
    turns = (words & (2**_BITS - 1)).to(fmri.dtype) / 2**_BITS
    if frames % 2 == 0:  # the Nyquist component is real: its sign is all that can change
        turns[:, -1] = turns[:, -1].round() / 2
    phases = torch.polar(torch.ones_like(turns), 2 * math.pi * turns)
    return torch.fft.irfft(spectrum * phases[:, None, None], frames) + mean


def hold_constant(fmri: Tensor, seeds: Tensor) -> Tensor:
    """Replace each ROI's series by its mean, and nothing but the means is left."""
    return fmri.mean(dim=-1, keepdim=True).expand_as(fmri).contiguous()


def random_words(seeds: Tensor, n: int) -> Tensor:
    """``n`` random int64 for each of ``seeds`` ``[B]``, ``[B, n]``: a hash of (seed, place).

    In integers, so that every device draws the same, for all clips at once.
    """
    places = torch.arange(n, device=seeds.device)
    return _mix(_mix(seeds.long() * _STEP)[:, None] + places * _STEP)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64: every bit of the result depends on every bit of ``x``."""
    for shift, multiplier in _MULTIPLIERS:
        x = (x ^ _shifted(x, shift)) * multiplier
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """``x`` shifted to the right as if it had no sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
