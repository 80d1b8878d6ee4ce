"""Normalisation of clips, one function per method.

robust         (x - median) / IQR of the ROI, both over the time means of the training people
robust_frames  the same with median and IQR over the training frames
zscore_sample  (x - mean) / SD over all ROIs and frames of the clip
zscore_roi     the same for each ROI of the clip by itself
none           the values as stored

``robust`` is the release's for UKB, ``zscore_sample`` its downstream one (method 7). The statistics
that the first two need are in :mod:`src.datasets.folder.statistics`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch

Method = Literal["robust", "robust_frames", "zscore_sample", "zscore_roi", "none"]
METHODS: tuple[str, ...] = get_args(Method)
ROBUST_METHODS = ("robust", "robust_frames")

_ROUNDING = 8 * torch.finfo(torch.float32).eps  # as for constant ROIs in folder_format


# --- clips -------------------------------------------------------------------------------------
# Each takes a clip [..., R, T], leaves it alone, as it may be a view of the memory map, and returns
# a new contiguous tensor. ``bad`` is a bool mask [R] of ROIs that count for nothing and become 0.


def normalizer(
    method: Method, **stats: Any
) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """The function of a clip and its bad ROIs for ``method``.

    ``stats`` are ``median`` and ``iqr``, float32 ``[R]``, of the robust methods.
    """
    if method in ROBUST_METHODS:
        median, iqr = (torch.from_numpy(stats[name])[:, None] for name in ("median", "iqr"))
        return partial(robust, median=median, inverse_iqr=1 / iqr)
    return {"zscore_sample": zscore_sample, "zscore_roi": zscore_roi, "none": none}[method]


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


def _zero(values: torch.Tensor, bad: torch.Tensor | None) -> torch.Tensor:
    if bad is not None:
        values[..., bad, :] = 0.0
    return values
