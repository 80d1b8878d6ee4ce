"""What clips look like to the encoder, in its training and in an evaluation (method 7).

The features of an encoder trained on clips whose variance is static offsets of ROIs depend on
these offsets; on data without them they carry little information, and nothing fails.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .fmri import FMRIDataset

_RUNS = 64  # that a profile is measured on
_SHARE_DIFFERENCE = 0.25
_SCALE_FACTOR = 2.0
_LEVEL_DISTANCE = 3.0  # SD of the training clips
_ROIS_THAT_MAY_DIFFER = 0.1


@dataclass(frozen=True)
class InputProfile:
    """Three properties of each ROI in normalised clips; NaN for an ROI that is bad in all runs.

    Attributes:
        mean: over clips and samples, ``[R]``.
        offset_sd: SD over clips of the mean over time, ``[R]``.
        sd: SD over time, root mean square over clips, ``[R]``.
    """

    mean: list[float]
    offset_sd: list[float]
    sd: list[float]

    @classmethod
    def from_dataset(cls, dataset: FMRIDataset) -> "InputProfile":
        """Measure the centre clips of 64 runs at most, spread evenly over the data set."""
        n_runs = len(dataset.rows)
        chosen = np.unique(np.linspace(0, n_runs - 1, min(n_runs, _RUNS)).round().astype(int))
        means = np.ma.masked_all((len(chosen), dataset.n_rois))
        variances = means.copy()
        for k, i in enumerate(chosen.tolist()):
            good = ~dataset.folder.bad_roi_mask(dataset.rows[i])
            values = dataset.center_clip(i)[0].numpy()[good]
            means[k, good] = values.mean(axis=1, dtype=np.float64)
            variances[k, good] = values.var(axis=1, dtype=np.float64)
        per_roi = (means.mean(axis=0), means.std(axis=0), np.sqrt(variances.mean(axis=0)))
        return cls(*(values.filled(np.nan).tolist() for values in per_roi))

    @property
    def offset_share(self) -> float:
        """Share of an ROI's variance that lies between clips rather than in time, mean over ROIs.

        0 after ``zscore_roi``; near 1 where people differ by large offsets.
        """
        offsets, fluctuations = np.square(self.offset_sd), np.square(self.sd)
        varies = offsets + fluctuations > 0  # not of an ROI that is bad, or has one value only
        shares = offsets[varies] / (offsets + fluctuations)[varies]
        return float(shares.mean()) if shares.size else 0.0

    def to_dict(self) -> dict[str, list[float | None]]:
        """Plain types for checkpoints and JSON, which has no NaN: it becomes ``None``."""
        return {
            name: [None if math.isnan(value) else value for value in values]
            for name, values in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[float | None]]) -> "InputProfile":
        """The inverse of :meth:`to_dict`."""
        return cls(
            **{name: [math.nan if v is None else v for v in row] for name, row in values.items()}
        )


def input_mismatch(training: InputProfile, here: InputProfile) -> list[str]:
    """What differs between the clips of pretraining and those at hand, in words; empty if alike.

    Reported are shares of offset that differ by more than .25, and, where it concerns more than a
    tenth of the ROIs, a scale that differs by more than a factor of 2 and a mean that lies more
    than 3 SD of the training clips away.
    """
    found = []
    if abs(training.offset_share - here.offset_share) > _SHARE_DIFFERENCE:
        found.append(
            f"offsets between runs are {100 * here.offset_share:.0f} % of an ROI's variance, in "
            f"training {100 * training.offset_share:.0f} %"
        )
    sd, offset_sd, mean = (
        np.array([getattr(training, name), getattr(here, name)])
        for name in ("sd", "offset_sd", "mean")
    )
    known = ~np.isnan(sd).any(axis=0) & (sd > 0).all(axis=0)
    (sd, sd_here), mean, offset_sd = sd[:, known], mean[:, known], offset_sd[0, known]
    n_rois = known.sum()
    ratio = sd_here / sd
    n_scaled = ((ratio > _SCALE_FACTOR) | (ratio < 1 / _SCALE_FACTOR)).sum()
    if n_scaled > _ROIS_THAT_MAY_DIFFER * n_rois:
        found.append(
            f"the SD over time of {n_scaled} of {n_rois} ROIs differs by more than a factor of "
            f"{_SCALE_FACTOR:g} (median ratio to training {np.median(ratio):.2g})"
        )
    n_shifted = (np.abs(mean[1] - mean[0]) > _LEVEL_DISTANCE * np.hypot(sd, offset_sd)).sum()
    if n_shifted > _ROIS_THAT_MAY_DIFFER * n_rois:
        found.append(
            f"the mean of {n_shifted} of {n_rois} ROIs lies more than {_LEVEL_DISTANCE:g} SD from "
            "that in training"
        )
    return found
