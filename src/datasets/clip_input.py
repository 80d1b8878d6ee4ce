"""How a run becomes a clip: which samples of it, normalised how, and which runs are left out.

One description serves pretraining, evaluation, embedding and series in memory, and travels with
checkpoints, so that a clip looks to the encoder as it did in training.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import UserError, nearest
from .clips import even_starts, frame_steps, frames_needed, samples_available, take_clip
from .folder.statistics import check_statistics
from .normalization import (
    GLOBAL_SIGNAL,
    METHODS,
    ROBUST_METHODS,
    STATISTICS,
    GlobalSignal,
    Method,
    normalizer,
)

ShortRuns = Literal["error", "pad", "skip"]
BadRois = Literal["exclude", "zero"]
SHORT_RUNS: tuple[str, ...] = get_args(ShortRuns)
BAD_ROIS: tuple[str, ...] = get_args(BadRois)

# The release decimates multiband data (TR about 0.7 s) by 3 to a TR of about 2 s (method 7).
DOWNSAMPLE_STRIDE = 3
DEFAULT_TARGET_TR = 2.0
DEFAULT_NORMALIZATION: Method = "zscore_sample"  # the paper's, downstream


@dataclass(frozen=True, eq=False)
class ClipInput:
    """How a run ``[R, T_run]`` becomes a clip ``[1, R, T]``.

    ``None`` stands for what a checkpoint does not state; see :meth:`changed` and :meth:`completed`.

    Attributes:
        crop_size: (R, T), ROIs and samples of a clip.
        normalization: a method of :mod:`src.datasets.normalization`.
        stats: ``median`` and ``iqr`` ``[R]`` for the robust methods; without them a data set takes
            those of its folder's training runs.
        stride: every so many frames are a sample, or
        target_tr: seconds between samples, interpolated where that falls between frames.
        short_runs: what happens to runs with fewer frames than a clip needs: "error", "pad" (zeros
            after the last sample, added after normalisation) or "skip" (left out).
        bad_rois: "exclude" (leave out runs with a constant or non-finite ROI) or "zero" (keep them;
            the ROI is 0 after normalisation, and no part of the global signal).
        clip_sd: normalised values are clamped to +-it; ``None``: they are not.
        global_signal: "keep", or "remove": the mean over ROIs of each frame is subtracted, after
            the clamping and before the padding.

    Raises:
        UserError: on a value that no clip can have.
    """

    crop_size: tuple[int, int]
    normalization: Method | None = None
    stats: Mapping[str, Any] | None = None
    stride: int | None = None
    target_tr: float | None = None
    short_runs: ShortRuns = "error"
    bad_rois: BadRois = "exclude"
    clip_sd: float | None = None
    global_signal: GlobalSignal = "keep"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("normalization", METHODS),
            ("short_runs", SHORT_RUNS),
            ("bad_rois", BAD_ROIS),
            ("global_signal", GLOBAL_SIGNAL),
        ):
            value = getattr(self, name)
            if value not in allowed and not (name == "normalization" and value is None):
                raise UserError(
                    f"{name} is '{value}', it must be one of {', '.join(allowed)}."
                    f"{nearest(str(value), allowed)}"
                )
        if self.stride is not None and self.target_tr is not None:
            raise UserError("give stride or target_tr, not both.")
        if self.target_tr is not None and not self.target_tr > 0:
            raise UserError(f"target_tr is {self.target_tr}, it must be seconds above 0.")
        if self.clip_sd is not None and not self.clip_sd > 0:
            raise UserError(f"clip_sd is {self.clip_sd}, it must be above 0.")
        if self.global_signal == "remove" and self.crop_size[0] == 1:
            raise UserError("global_signal is remove, and a clip has one ROI: it would become 0.")

    # --- what is known --------------------------------------------------------------------------

    @property
    def sampling(self) -> dict[str, Any] | None:
        """``{"stride": n}`` or ``{"target_tr": seconds}``; ``None`` where not known."""
        if self.target_tr is not None:
            return {"target_tr": self.target_tr}
        return None if self.stride is None else {"stride": self.stride}

    @property
    def cleaning(self) -> dict[str, Any]:
        """What follows the normalisation: ``clip_sd`` and ``global_signal``."""
        return {"clip_sd": self.clip_sd, "global_signal": self.global_signal}

    def describe_values(self) -> str:
        """``robust, clamped to +-8, global signal removed``."""
        clamped = "" if self.clip_sd is None else f", clamped to +-{self.clip_sd:g}"
        removed = ", global signal removed" if self.global_signal == "remove" else ""
        return f"{self.normalization}{clamped}{removed}"

    def changed(
        self,
        *,
        normalization: Method | None = None,
        stride: int | None = None,
        target_tr: float | None = None,
        clip_sd: float | Literal["checkpoint"] | None = "checkpoint",
        global_signal: GlobalSignal | Literal["checkpoint"] = "checkpoint",
        **runs: str,
    ) -> "ClipInput":
        """The same with the values given in place of its own.

        Another method of normalisation comes without statistics: those here are of the old one.
        ``clip_sd`` and ``global_signal`` stay as they are where "checkpoint" is given, as ``None``
        is a value of the first. ``runs`` are ``short_runs`` and ``bad_rois``.
        """
        cleaning = {"clip_sd": clip_sd, "global_signal": global_signal}
        changes: dict[str, Any] = {k: v for k, v in cleaning.items() if v != "checkpoint"} | runs
        if normalization not in (None, self.normalization):
            changes |= {"normalization": normalization, "stats": None}
        if stride is not None or target_tr is not None:
            changes |= {"stride": stride, "target_tr": target_tr}
        return replace(self, **changes)

    def completed(self) -> "ClipInput":
        """The same; what is not known becomes one z-score per clip, and every frame."""
        return replace(
            self,
            normalization=self.normalization or DEFAULT_NORMALIZATION,
            stride=self.stride if self.sampling else 1,
        )

    def to_state(self) -> dict[str, Any]:
        """What checkpoints keep: ``normalization`` and ``sampling``.

        The first holds ``method``, the statistics, and :attr:`cleaning`.
        """
        stats = {name: torch.as_tensor(value) for name, value in (self.stats or {}).items()}
        return {
            "normalization": {"method": self.normalization, **self.cleaning, **stats},
            "sampling": self.sampling,
        }

    @classmethod
    def from_state(cls, crop_size: tuple[int, int], state: Mapping[str, Any]) -> "ClipInput":
        """The inverse of :meth:`to_state`; what ``state`` does not hold is not known.

        A state without :attr:`cleaning` was written before there was any: nothing follows.
        """
        stated = dict(state.get("normalization") or {})
        method = stated.pop("method", None)
        stats = {name: stated.pop(name) for name in STATISTICS if name in stated}
        return cls(crop_size, method, stats or None, **(state.get("sampling") or {}), **stated)

    # --- clips ----------------------------------------------------------------------------------

    def steps(self, tr: np.ndarray) -> np.ndarray:
        """Frames per sample of runs with these repetition times in seconds, float64 ``[n]``.

        Raises:
            UserError: if it is not known, or the target TR is finer than that of a run.
        """
        if self.sampling is None:
            raise UserError("how runs are resampled is not known: give stride or target_tr.")
        return frame_steps(tr, **self.sampling)

    def frames_needed(self, tr: np.ndarray) -> np.ndarray:
        """Frames that a clip takes of runs with these repetition times, int64 ``[n]``."""
        return frames_needed(self.crop_size[1], self.steps(tr))

    @cached_property
    def normalize(self) -> Callable[[Tensor, Tensor | None], Tensor]:
        """Function of a clip ``[..., R, T]`` and a bool mask ``[R]`` of bad ROIs, or ``None``.

        Raises:
            UserError: if the method is not known, or its statistics are missing or do not fit.
        """
        if self.normalization is None:
            raise UserError("how clips are normalised is not known: give normalization.")
        if self.normalization not in ROBUST_METHODS:
            return normalizer(self.normalization, **self.cleaning)
        if self.stats is None:
            raise UserError(
                f"normalization {self.normalization} needs the median and IQR of each ROI, which "
                f"the checkpoint does not hold. Choose {DEFAULT_NORMALIZATION}."
            )
        stats = check_statistics(self.stats, self.crop_size[0], "the statistics given")
        return normalizer(self.normalization, **self.cleaning, **stats)

    def clip_of_series(self, series: Tensor | np.ndarray, tr: float) -> Tensor:
        """The centre clip ``[1, R, T]`` of a series in memory, ``[R, T_run]`` with TR in seconds.

        It is resampled to ``target_tr``, by default 2 s, as the paper does with multiband data (a
        stride belongs to the TR of the data it was chosen for); a run that is slower is used as it
        is, as frames that were not measured cannot be sampled. ROIs that are constant or not finite
        become 0 under ``bad_rois: zero``, and samples that a short run lacks under ``short_runs:
        pad``. What is not known is as in :meth:`completed`.

        Raises:
            UserError: if the series is not ``[R, T_run]`` or the TR is not above 0, and as a data
                set does with a bad ROI or too few frames.
        """
        rois, n_samples = self.crop_size
        if not isinstance(series, Tensor):
            series = torch.from_numpy(np.array(series, dtype=np.float32))
        if series.ndim != 2 or len(series) != rois or not series.shape[1]:
            raise UserError(f"a series must be [{rois}, frames], not {tuple(series.shape)}.")
        if tr is None or not tr > 0:
            raise UserError(f"the TR is {tr}, it must be seconds above 0.")
        series = series.detach().to("cpu", torch.float32).contiguous()
        bad = ~series.isfinite().all(dim=1) | (series == series[:, :1]).all(dim=1)
        if bool(bad.any()) and self.bad_rois != "zero":
            numbers = (bad.nonzero().flatten() + 1).tolist()
            raise UserError(
                f"{len(numbers)} of {rois} ROIs of the series are constant or not finite: ROI "
                f"{', '.join(map(str, numbers[:10]))}{', ...' if len(numbers) > 10 else ''}. Leave "
                "the series out, or set these ROIs to 0 by bad_rois: zero."
            )
        series = series.masked_fill(bad[:, None], 0.0)
        frames = series.shape[1]
        target_tr = max(tr, self.target_tr or DEFAULT_TARGET_TR)
        step = frame_steps(np.array([tr]), target_tr=target_tr)
        needed = frames_needed(n_samples, step).item()
        if frames < needed and self.short_runs != "pad":
            raise UserError(
                f"the series has {frames} frames of {tr:g} s, and a clip of {n_samples} samples "
                f"{target_tr:g} s apart needs {needed}. Give a longer series or a smaller "
                "target_tr, or add zeros by short_runs: pad."
            )
        spare = max(frames - needed, 0)
        available = min(n_samples, samples_available(frames, step).item())
        start = even_starts(spare + 1, 1).item()
        clip = take_clip(series.flatten(), (0, rois, frames), start, step.item(), available)
        clip = self.completed().normalize(clip, bad if bool(bad.any()) else None)
        return F.pad(clip, (0, n_samples - available))  # as short_runs: pad
