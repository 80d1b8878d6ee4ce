"""Normalisation of clips, and the robust statistics of a data set that one of its methods needs.

robust         (x - median) / IQR of the ROI over the training participants (spec 7, UKB)
zscore_sample  (x - mean) / SD over all ROIs and frames of the clip (spec 7, downstream)
zscore_roi     the same for each ROI of the clip by itself
none           the values as stored
"""

import hashlib
import logging
import math
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from src.datasets.folder import DataFolder
from src.datasets.folder_format import NORMALIZATION_FILE, RUN_COLUMNS
from src.utils.errors import UserError
from src.utils.files import replacing

METHODS = ("robust", "zscore_sample", "zscore_roi", "none")

_SAMPLE_VALUES = 50_000_000  # 200 MB of float32; for 450 ROIs 111,000 frames each
_ROUNDING = 8 * torch.finfo(torch.float32).eps  # as for constant ROIs in folder_format

logger = logging.getLogger(__name__)


# --- clips -------------------------------------------------------------------------------------
# Each takes a clip [..., R, T], leaves it alone, as it may be a view of the memory map, and returns
# a new contiguous tensor. `bad` is a bool mask [R] of ROIs that count for nothing and become 0.


def robust(
    clip: torch.Tensor, median: torch.Tensor, inverse_iqr: torch.Tensor, bad: torch.Tensor | None
) -> torch.Tensor:
    """Shift and scale each ROI by constants; `median` and `inverse_iqr` are [R, 1]."""
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


# --- statistics of a data set --------------------------------------------------------------------


def robust_statistics(folder: DataFolder, max_values: int = _SAMPLE_VALUES) -> dict[str, Any]:
    """Return median and interquartile range of each ROI over the training participants.

    One pass over the runs. If all their frames fit in `max_values` numbers the result is exact:
    the quantiles of every frame. Otherwise each person contributes the same number of frames at
    most, spread evenly over his or her runs, so that memory stays what it is however many people
    there are, and nobody weighs more for having been scanned for longer. An ROI is left out of the
    runs in which it is bad.

    Returns:
        `median`, `iqr` (float32 [R], in the units of the data), `n_runs`, `n_participants`.

    Raises:
        UserError: if there is no training run, or an ROI has no good run or no spread.
    """
    people = _frames_to_read(folder, max(1, max_values // folder.n_rois))
    n_frames = sum(len(frames) for runs in people for _, frames in runs)
    sample = np.empty((folder.n_rois, n_frames), dtype=np.float32)
    filled = 0
    for runs in tqdm(people, desc="robust statistics", unit="person", leave=False):
        for row, frames in runs:
            block = sample[:, filled : filled + len(frames)]
            block[:] = folder.series(row)[:, frames]
            block[folder.bad_roi_mask(row)] = np.nan
            filled += len(frames)

    quartiles = np.full((3, folder.n_rois), np.nan)
    for roi, values in enumerate(sample):
        values = values[~np.isnan(values)]
        if values.size:
            quartiles[:, roi] = np.quantile(values, (0.25, 0.5, 0.75))
    median, iqr = quartiles[1].astype(np.float32), (quartiles[2] - quartiles[0]).astype(np.float32)
    if (useless := np.flatnonzero(~(iqr > 0))).size:
        names = ", ".join(folder.roi_labels[i] for i in useless[:5])
        raise UserError(
            f"{folder.path}: {useless.size} ROIs cannot be scaled by their IQR, as no training run "
            f"has good values of them or half of their values are the same: {names}"
            f"{' ...' if useless.size > 5 else ''}. Write the folder without them, or choose "
            "another normalization."
        )
    n_runs = len(folder.rows("train"))
    return {"median": median, "iqr": iqr, "n_runs": n_runs, "n_participants": len(people)}


def _frames_to_read(folder: DataFolder, max_frames: int) -> list[list[tuple[int, np.ndarray]]]:
    """Return for each training participant the runs and the frames of them to look at."""
    rows = folder.rows("train")
    if not rows.size:
        raise UserError(f"{folder.path} has no training run, so there are no robust statistics.")
    people = list(folder.runs.loc[rows].groupby("participant_id", sort=False).groups.values())
    if folder.frames[rows].sum() <= max_frames:
        per_person = int(folder.frames.max()) * len(rows)  # no limit
    else:
        people = people[:: -(-len(people) // max_frames)]
        per_person = max_frames // len(people)
    chosen = []
    for person in people:
        starts = np.cumsum([0, *folder.frames[person]])
        n = min(per_person, int(starts[-1]))
        frames = ((np.arange(n) + 0.5) * starts[-1] / n).astype(np.int64)
        pieces = np.split(frames, np.searchsorted(frames, starts[1:-1]))
        parts = zip(person, pieces, starts, strict=False)  # `starts` also holds the end
        chosen.append([(row, piece - start) for row, piece, start in parts])
    return chosen


def stored_statistics(folder: DataFolder) -> dict[str, np.ndarray]:
    """Return `median` and `iqr` (float32 [R]) from normalization.npz, computing it if need be.

    The file says which runs it was computed from; one from other training runs is replaced. Several
    processes may do this at once: each writes a file of its own and renames it.
    """
    path = folder.path / NORMALIZATION_FILE
    fingerprint = _fingerprint(folder)
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as stored:
                if str(stored["fingerprint"]) == fingerprint:
                    return {"median": stored["median"], "iqr": stored["iqr"]}
            logger.warning("%s is from other training runs; it is computed anew.", path)
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logger.warning("%s cannot be read (%s); it is computed anew.", path, error)
    statistics = robust_statistics(folder)
    try:
        with replacing(path) as file:
            np.savez(file, **statistics, split="train", fingerprint=fingerprint)
    except OSError as error:
        logger.warning("%s could not be written (%s); every run computes it again.", path, error)
    return {"median": statistics["median"], "iqr": statistics["iqr"]}


def check_statistics(stats: Mapping[str, Any], n_rois: int, where: str) -> dict[str, np.ndarray]:
    """Return `median` and `iqr` as float32 [R]; a :class:`UserError` unless they can be used."""
    checked = {}
    for name in ("median", "iqr"):
        if name not in stats:
            raise UserError(f"{where}: '{name}' is missing from the normalization statistics.")
        values = np.asarray(stats[name], dtype=np.float32).reshape(-1)
        if values.shape != (n_rois,) or not np.isfinite(values).all():
            raise UserError(
                f"{where}: {name} must be {n_rois} finite numbers, one for each ROI of the data; "
                f"it has {values.size}, {np.isfinite(values).sum()} of them finite."
            )
        checked[name] = values
    if not (checked["iqr"] > 0).all():
        roi = int(np.argmin(checked["iqr"]))
        raise UserError(f"{where}: iqr of ROI {roi} is {checked['iqr'][roi]}, it must be above 0.")
    return checked


def _fingerprint(folder: DataFolder) -> str:
    """Return what normalization.npz depends on: the training runs, their order and their ROIs."""
    train = folder.runs.loc[folder.rows("train"), list(RUN_COLUMNS)]
    text = train.to_csv(sep="\t") + "\t".join(folder.roi_labels)
    return hashlib.sha256(text.encode()).hexdigest()
