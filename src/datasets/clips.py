"""Clip sampling: which frames of a run a clip of T samples takes. Pure functions.

Sample k of a clip lies at frame ``start + k * step`` of its run. By stride, step is a whole number
of frames; to a target TR, step = target TR / TR of the run, and a sample between two frames is
interpolated linearly. The window of a clip is T steps long (method 7); of its last step only the
first frame is read, so a run of (T - 1) * step + 1 frames is long enough.
"""

import numpy as np
import torch

from ..utils.errors import UserError

_WHOLE_TOLERANCE = 1e-4  # of a frame per step: 0.016 frames of drift over 160 samples
_MASK64 = (1 << 64) - 1


def frame_steps(tr: np.ndarray, *, stride: int = 1, target_tr: float | None = None) -> np.ndarray:
    """Return frames per sample of each run, float64 ``[n]``; exact where it is a whole number.

    Args:
        tr: repetition time of each run in seconds, ``[n]``.
        stride: take every so many frames.
        target_tr: take one sample per so many seconds instead.

    Raises:
        UserError: on a stride that is not a positive integer, or a target TR that is not positive
            or finer than a run's own.
    """
    tr = np.asarray(tr, dtype=np.float64)
    if target_tr is None:
        if isinstance(stride, bool) or int(stride) != stride or stride < 1:
            raise UserError(f"stride is {stride}, it must be an integer of at least 1.")
        return np.full(tr.shape, float(stride))
    if not target_tr > 0:
        raise UserError(f"target_tr is {target_tr}, it must be seconds above 0.")
    steps = target_tr / tr
    whole = np.abs(steps - np.round(steps)) < _WHOLE_TOLERANCE
    steps[whole] = np.round(steps[whole])
    if (steps < 1).any():
        raise UserError(
            f"target_tr is {target_tr} s, finer than the TR of {tr.max():g} s of some runs; "
            f"choose {tr.max():g} s or more, as frames that were not measured cannot be sampled."
        )
    return steps


def frames_needed(num_frames: int, steps: np.ndarray) -> np.ndarray:
    """Frames that a run must have for a clip of ``num_frames`` samples, int64 ``[n]``."""
    return np.ceil((num_frames - 1) * np.asarray(steps, dtype=np.float64)).astype(np.int64) + 1


def samples_available(frames: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Number of samples, ``steps`` frames apart, in runs of ``frames`` frames, int64 ``[n]``."""
    return np.floor((np.asarray(frames) - 1) / steps).astype(np.int64) + 1


def even_starts(n_starts: int, n_clips: int) -> np.ndarray:
    """Return ``n_clips`` start frames spread evenly over 0 .. n_starts - 1; one clip is centred."""
    if n_clips == 1:
        return np.array([(n_starts - 1) // 2])
    return np.linspace(0, n_starts - 1, n_clips).round().astype(np.int64)


def random_start(seed: int, epoch: int, row: int, n_starts: int) -> int:
    """Return a start frame in 0 .. n_starts - 1, uniform, as a pure function of its arguments.

    The three numbers are mixed by splitmix64 (Steele et al. 2014). A generator object per sample
    would cost as much as reading it, and one per worker would depend on the number of workers.
    """
    mixed = _splitmix64(_splitmix64(_splitmix64(seed) ^ epoch) ^ row)
    return (mixed * n_starts) >> 64


def _splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def take_clip(
    flat: torch.Tensor, run: tuple[int, int, int], start: int, step: float, num_frames: int
) -> torch.Tensor:
    """Return ``num_frames`` samples of a run as ``[1, R, T]``.

    A view of ``flat`` for whole steps; else a new tensor, interpolated linearly. (Interpolation
    smooths: white noise half-way between two frames loses half its variance.)

    Args:
        flat: 1-D, runs one after another, each C order ``[R, T_run]``.
        run: its first element in ``flat``, R, T_run.
        start, step: sample k is at frame ``start + k * step``.
    """
    first, n_rois, frames = run
    if step == int(step):
        size, strides = (1, n_rois, num_frames), (n_rois * frames, frames, int(step))
        return flat.as_strided(size, strides, first + start)
    values = flat.as_strided((1, n_rois, frames), (n_rois * frames, frames, 1), first)
    positions = start + step * torch.arange(num_frames, dtype=torch.float64)
    before = positions.long()
    weight = (positions - before).to(flat.dtype)
    after = (before + 1).clamp_(max=frames - 1)  # the last frame is read with weight 0 only
    index = (1, n_rois, num_frames)  # gather is six times faster here than values[..., before]
    clip = values.gather(2, before.expand(index))
    return clip.lerp_(values.gather(2, after.expand(index)), weight)
