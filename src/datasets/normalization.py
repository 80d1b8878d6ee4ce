"""Normalisation of clips, one function per method.

robust         (x - median) / IQR of the ROI, both over the time means of the training people
robust_frames  the same with median and IQR over the training frames
zscore_sample  (x - mean) / SD over all ROIs and frames of the clip
zscore_roi     the same for each ROI of the clip by itself
none           the values as stored

``robust`` is the release's for UKB, ``zscore_sample`` its downstream one (method 7). The statistics
that the first two need are in :mod:`src.datasets.folder.statistics`.

Two steps may follow, in this order (method 10): values are clamped, then the global signal, the
mean over ROIs of each frame, is removed.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch

Method = Literal["robust", "robust_frames", "zscore_sample", "zscore_roi", "none"]
METHODS: tuple[str, ...] = get_args(Method)
ROBUST_METHODS = ("robust", "robust_frames")
GlobalSignal = Literal["keep", "remove"]
GLOBAL_SIGNAL: tuple[str, ...] = get_args(GlobalSignal)
STATISTICS = ("median", "iqr")  # of the robust methods, ``[R]``

_ROUNDING = 8 * torch.finfo(torch.float32).eps  # as for constant ROIs in folder_format


# --- clips -------------------------------------------------------------------------------------
# Each takes a clip [..., R, T], leaves it alone, as it may be a view of the memory map, and returns
# a new contiguous tensor. ``bad`` is a bool mask [R] of ROIs that count for nothing and become 0.


Normalize = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def normalizer(
    method: Method,
    clip_sd: float | None = None,
    global_signal: GlobalSignal = "keep",
    **stats: Any,
) -> Normalize:
    """The function of a clip and its bad ROIs for ``method`` and the steps after it.

    ``stats`` are ``median`` and ``iqr``, float32 ``[R]``, of the robust methods.
    """
    if method in ROBUST_METHODS:
        median, iqr = (torch.from_numpy(stats[name])[:, None] for name in STATISTICS)
        normalize: Normalize = partial(robust, median=median, inverse_iqr=1 / iqr)
    else:
        of_clip = {"zscore_sample": zscore_sample, "zscore_roi": zscore_roi, "none": none}
        normalize = of_clip[method]
    if clip_sd is None and global_signal == "keep":
        return normalize
    remove = global_signal == "remove"
    return partial(cleaned, normalize=normalize, clip_sd=clip_sd, remove=remove)


def robust(
    clip: torch.Tensor, bad: torch.Tensor | None, median: torch.Tensor, inverse_iqr: torch.Tensor
) -> torch.Tensor:
    """Shift and scale each ROI by constants; ``median`` and ``inverse_iqr`` are ``[R, 1]``."""
    # Two operations, the second in cache: they vectorise over rows, torch.addcmul here does not.
    return _zero(torch.sub(clip, median).mul_(inverse_iqr), bad)


def zscore_sample(clip: torch.Tensor, bad: torch.Tensor | None) -> torch.Tensor:
    """Shift and scale the clip to mean 0 and (population) SD 1 over all its values."""
    # Not torch.std_mean, which takes seven times as long as these passes; below as well.
    values = clip.clone(memory_format=torch.contiguous_format)
    mean = (values if bad is None else values[..., ~bad, :]).mean().item()
    _zero(values.sub_(mean), bad)
    n_good = clip.shape[-2] if bad is None else int((~bad).sum())
    std = torch.linalg.vector_norm(values).item() / math.sqrt(n_good * clip.shape[-1])
    return values.mul_(1 / std) if std > _ROUNDING * abs(mean) else values.zero_()


def zscore_roi(clip: torch.Tensor, bad: torch.Tensor | None) -> torch.Tensor:
    """Shift and scale each ROI of the clip to mean 0 and (population) SD 1.

    An ROI that does not vary within the clip becomes 0.
    """
    values = clip.clone(memory_format=torch.contiguous_format)
    mean = values.mean(dim=-1, keepdim=True)
    values.sub_(mean)
    std = torch.linalg.vector_norm(values, dim=-1, keepdim=True) / math.sqrt(values.shape[-1])
    scale = torch.where(std > _ROUNDING * mean.abs(), std.reciprocal(), 0.0)
    return _zero(values.mul_(scale), bad)


def none(clip: torch.Tensor, bad: torch.Tensor | None) -> torch.Tensor:
    """Copy the clip as it is."""
    return _zero(clip.clone(memory_format=torch.contiguous_format), bad)


def cleaned(
    clip: torch.Tensor,
    bad: torch.Tensor | None,
    normalize: Normalize,
    clip_sd: float | None,
    remove: bool,
) -> torch.Tensor:
    """Normalise, clamp to +-``clip_sd``, and with ``remove`` take the global signal out."""
    values = normalize(clip, bad)
    if clip_sd is not None:
        values.clamp_(-clip_sd, clip_sd)  # first: an outlier would shift every ROI of its frame
    return without_global_signal_(values, bad) if remove else values


def without_global_signal_(values: torch.Tensor, bad: torch.Tensor | None) -> torch.Tensor:
    """Subtract in place, from each frame of ``[..., R, T]``, the mean over ROIs that are not bad.

    Bad ROIs become 0.
    """
    good = values if bad is None else values[..., ~bad, :]
    return _zero(values.sub_(good.mean(dim=-2, keepdim=True)), bad)


def _zero(values: torch.Tensor, bad: torch.Tensor | None) -> torch.Tensor:
    if bad is not None:
        values[..., bad, :] = 0.0
    return values
