"""One series in memory, prepared as a checkpoint expects its clips: resampled, cut, normalised.

Data-set folders have :class:`src.datasets.fmri.FMRIDataset` for this; the same functions serve here
whoever holds an array: Brainmarks, or a user of an exported model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from downstream_tasks.encoders import EncoderFacts
from src.datasets import normalization as norm
from src.datasets.clips import even_starts, frame_steps, frames_needed, samples_available, take_clip
from src.datasets.statistics import check_statistics
from src.utils.errors import UserError, nearest

# What the paper strides its multiband data to (spec 7), for checkpoints that do not say.
DEFAULT_TARGET_TR = 2.0
DEFAULT_NORMALIZATION = "zscore_sample"  # the paper's, downstream


class KnowsItsData(Protocol):
    """What :class:`Pretrained` and an exported model have in common."""

    facts: EncoderFacts
    sampling: dict[str, Any] | None
    normalization: str | None

    @property
    def stats(self) -> Mapping[str, Any] | None: ...


@dataclass(frozen=True)
class ClipPreparation:
    """``series`` ``[R, T_run]`` and its TR in seconds -> the centre clip ``[1, R, T]``.

    Attributes:
        crop_size: (R, T).
        target_tr: seconds between samples. A run that is slower than that is used as it is, as the
            paper does: frames that were not measured cannot be sampled.
        normalization: a method of :mod:`src.datasets.normalization`.
        stats: ``median`` and ``iqr`` ``[R]`` for ``robust``.
    """

    crop_size: tuple[int, int]
    target_tr: float = DEFAULT_TARGET_TR
    normalization: str = DEFAULT_NORMALIZATION
    stats: Mapping[str, Any] | None = None
    _scale: tuple[Tensor, Tensor] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.normalization not in norm.METHODS:
            raise UserError(
                f"normalization is '{self.normalization}'; allowed: {', '.join(norm.METHODS)}."
                f"{nearest(self.normalization, norm.METHODS)}"
            )
        if self.target_tr <= 0:
            raise UserError(f"target_tr is {self.target_tr}, it must be seconds above 0.")
        if self.normalization in norm.ROBUST_METHODS:
            if self.stats is None:
                raise UserError(
                    f"normalization {self.normalization} needs the median and IQR of each ROI, "
                    f"which the checkpoint does not hold. Choose {DEFAULT_NORMALIZATION}."
                )
            stats = check_statistics(self.stats, self.crop_size[0], "the checkpoint")
            scale = (torch.from_numpy(stats["median"]), torch.from_numpy(1 / stats["iqr"]))
            object.__setattr__(self, "_scale", tuple(values[:, None] for values in scale))

    @classmethod
    def of(
        cls,
        model: KnowsItsData,
        target_tr: float | None = None,
        normalization: str | None = None,
    ) -> "ClipPreparation":
        """What the model says; the arguments where given, the paper's values for the rest."""
        stated = (model.sampling or {}).get("target_tr")
        return cls(
            model.facts.crop_size,
            target_tr or stated or DEFAULT_TARGET_TR,
            normalization or model.normalization or DEFAULT_NORMALIZATION,
            model.stats,
        )

    def __call__(self, series: Tensor, tr: float) -> Tensor:
        """Prepare one run; ROIs that are constant or not finite become 0.

        Raises:
            UserError: if the series is not ``[R, T_run]`` or the TR is not above 0.
        """
        rois, n_samples = self.crop_size
        if series.ndim != 2 or len(series) != rois:
            raise UserError(f"a series must be [{rois}, frames], not {tuple(series.shape)}.")
        if not tr > 0:
            raise UserError(f"the TR is {tr}, it must be seconds above 0.")
        series = series.detach().to("cpu", torch.float32).contiguous()
        bad = ~series.isfinite().all(dim=1) | (series == series[:, :1]).all(dim=1)
        series = series.masked_fill(bad[:, None], 0.0)
        frames = series.shape[1]
        step = float(
            frame_steps(np.array([tr]), "tr", target_tr=self.target_tr)[0]
            if tr < self.target_tr
            else 1.0
        )
        spare = frames - int(frames_needed(n_samples, np.array(step)))
        start = int(even_starts(max(spare, 0) + 1, 1)[0])
        available = min(n_samples, samples_available(frames, step))
        clip = take_clip(series.flatten(), (0, rois, frames), start, step, available)
        clip = self._normalise(clip, bad if bool(bad.any()) else None)
        return F.pad(clip, (0, n_samples - available))  # as short_runs: pad

    def _normalise(self, clip: Tensor, bad: Tensor | None) -> Tensor:
        if self._scale is not None:
            return norm.robust(clip, *self._scale, bad)
        return getattr(norm, self.normalization)(clip, bad)
