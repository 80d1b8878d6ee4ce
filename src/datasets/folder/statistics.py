"""Median and IQR of each ROI over the training runs, for the robust methods, kept in a file.

``robust`` keeps what differs between people and ROIs at rest: where signals have offsets of
thousands, as parcellated UKB signals do, most of the variance of a clip is such offsets.
``robust_frames`` scales by the fluctuations as well, so it fits signals without offsets too.
"""

import logging
import shlex
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.errors import UserError
from ...utils.files import replacing
from ...utils.progress import progress_bar
from . import DataFolder
from .fingerprint import describe_change, runs_fingerprint
from .format import NORMALIZATION_FILE

_SAMPLE_VALUES = 50_000_000  # 200 MB of float32; for 450 ROIs 111,000 frames each
# People whose time means differ by less than this part of the SD in time do not give a scale:
# fluctuations divided by it would be of order 100.
_LEAST_SPREAD = 0.01

_OTHER_METHODS = {
    "robust": "data.normalization=robust_frames (median and IQR over frames) or zscore_roi",
    "robust_frames": "another data.normalization, such as zscore_sample",
}

logger = logging.getLogger(__name__)


# --- computing -----------------------------------------------------------------------------------


def robust_statistics(folder: DataFolder, method: str, rows: np.ndarray) -> dict[str, Any]:
    """Median and interquartile range of each ROI for ``robust`` or ``robust_frames``.

    Args:
        rows: the runs they are of, those that are trained on. An ROI is left out of the runs in
            which it is bad.

    Returns:
        ``median``, ``iqr`` (float32 ``[R]``, in the units of the data), ``n_runs``,
        ``n_participants``.

    Raises:
        UserError: if there is no run, or an ROI has no good run or no spread to be scaled by.
    """
    if not len(rows):
        raise UserError(f"{folder.path} has no training run, so there are no robust statistics.")
    people = list(folder.runs.loc[rows].groupby("participant_id", sort=False).groups.values())
    if method == "robust":
        values, least = _time_means(folder, people)
    else:
        values, least = _frames(folder, people), np.zeros(folder.n_rois)
    q1, median, q3 = _quartiles(values)
    iqr = (q3 - q1).astype(np.float32)
    if (useless := np.flatnonzero(~(iqr > least))).size:
        names = ", ".join(folder.roi_labels[i] for i in useless[:5])
        raise UserError(
            f"{folder.path}: {useless.size} ROIs cannot be scaled by the IQR of {method}: "
            f"{_reason(method, len(people))}: {names}{' ...' if useless.size > 5 else ''}. Choose "
            f"{_OTHER_METHODS[method]}, or write the folder without them."
        )
    n_participants = len(people)
    return {
        "median": median.astype(np.float32),
        "iqr": iqr,
        "n_runs": len(rows),
        "n_participants": n_participants,
    }


def _reason(method: str, n_people: int) -> str:
    if method == "robust":
        return (
            f"their means over time do not differ enough between the {n_people} training people "
            "(time means removed, or few people), or no one has good values of them"
        )
    return "no training run has good values of them, or half of their values are the same"


def _time_means(folder: DataFolder, people: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over time of each person, float32 ``[R, people]``, and the least usable IQR ``[R]``.

    The mean of a person with several runs is the mean of the means of those runs in which the ROI
    is good, each run counting the same; NaN where there is none. All frames are read, one run at a
    time; the means of 40,000 people and 450 ROIs take 72 MB.
    """
    means = np.full((folder.n_rois, len(people)), np.nan, dtype=np.float32)
    deviation, n_good = np.zeros(folder.n_rois), np.zeros(folder.n_rois)
    for i, rows in enumerate(
        progress_bar(people, desc="means over time", unit="person", leave=False)
    ):
        total, count = np.zeros(folder.n_rois), np.zeros(folder.n_rois)
        for row in rows:
            series, good = folder.series(row), ~folder.bad_roi_mask(row)
            total += np.where(good, series.mean(axis=1, dtype=np.float64), 0)
            deviation += np.where(good, series.std(axis=1, dtype=np.float64), 0)
            count += good
        np.divide(total, count, out=means[:, i], where=count > 0, casting="same_kind")
        n_good += count
    return means, _LEAST_SPREAD * deviation / np.maximum(n_good, 1)


def _frames(folder: DataFolder, people: list[np.ndarray]) -> np.ndarray:
    """Values of frames of all people, float32 ``[R, frames]``; NaN where the ROI is bad.

    All frames if they fit in ``_SAMPLE_VALUES`` numbers. Otherwise each person contributes the same
    number of frames at most, spread evenly over the person's runs, so that memory does not grow
    with the number of people, and a longer scan has no greater weight.
    """
    chosen = _frames_to_read(folder, people, max(1, _SAMPLE_VALUES // folder.n_rois))
    sample = np.empty((folder.n_rois, sum(len(frames) for _, frames in chosen)), dtype=np.float32)
    filled = 0
    for row, frames in progress_bar(chosen, desc="values of frames", unit="run", leave=False):
        block = sample[:, filled : filled + len(frames)]
        block[:] = folder.series(row)[:, frames]
        block[folder.bad_roi_mask(row)] = np.nan
        filled += len(frames)
    return sample


def _frames_to_read(
    folder: DataFolder, people: list[np.ndarray], max_frames: int
) -> list[tuple[int, np.ndarray]]:
    """Runs, and the frames of each to look at."""
    total = sum(int(folder.frames[rows].sum()) for rows in people)
    if total <= max_frames:
        return [(row, np.arange(folder.frames[row])) for rows in people for row in rows]
    people = people[:: -(-len(people) // max_frames)]
    per_person = max_frames // len(people)
    chosen = []
    for rows in people:
        starts = np.cumsum([0, *folder.frames[rows]])
        n = min(per_person, int(starts[-1]))
        frames = ((np.arange(n) + 0.5) * starts[-1] / n).astype(np.int64)
        pieces = np.split(frames, np.searchsorted(frames, starts[1:-1]))
        parts = zip(rows, pieces, starts, strict=False)  # ``starts`` also holds the end
        chosen += [(row, piece - start) for row, piece, start in parts]
    return chosen


def _quartiles(values: np.ndarray) -> np.ndarray:
    """Quartiles of the rows of ``[R, n]`` without their NaN, ``[3, R]``; NaN for rows of NaN."""
    quartiles = np.full((3, len(values)), np.nan)
    for roi, row in enumerate(values):
        row = row[~np.isnan(row)]
        if row.size:
            quartiles[:, roi] = np.quantile(row, (0.25, 0.5, 0.75))
    return quartiles


# --- the file ------------------------------------------------------------------------------------


def stored_statistics(folder: DataFolder, method: str, rows: np.ndarray) -> dict[str, np.ndarray]:
    """``median`` and ``iqr`` (float32 ``[R]``) from normalization.npz, computed if need be.

    The file holds the fingerprint of the folder's training runs, and one entry for each method and
    set of runs asked for (runs that are left out of the training are in none of its statistics):
    ``method/fingerprint of these runs/median`` and likewise ``iqr``, ``n_runs``,
    ``n_participants``. Several processes may do this at once: each writes a file of its own and
    renames it.

    Raises:
        UserError: if the file is of other training runs than the folder has now, or as
            :func:`robust_statistics`.
    """
    path = folder.path / NORMALIZATION_FILE
    train = folder.rows("train")
    training = {
        "training_runs": runs_fingerprint(folder, train),
        "n_training_runs": len(train),
        "n_training_participants": folder.runs.loc[train, "participant_id"].nunique(),
    }
    stored = _read(path, training) or training
    key = f"{method}/{runs_fingerprint(folder, rows)}"
    if f"{key}/median" not in stored:
        statistics = robust_statistics(folder, method, rows)
        stored |= {f"{key}/{name}": value for name, value in statistics.items()}
        try:
            with replacing(path) as file:
                np.savez(file, **stored)
        except OSError as error:
            logger.warning("%s could not be written (%s); every run computes it.", path, error)
    return {name: stored[f"{key}/{name}"] for name in ("median", "iqr")}


def _read(path: Path, training: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the content of the file; ``None`` if it is missing or damaged."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            stored = dict(arrays)
        fingerprint = str(stored["training_runs"])
        runs, people = int(stored["n_training_runs"]), int(stored["n_training_participants"])
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s cannot be read (%s); it is computed anew.", path, error)
        return None
    if fingerprint != training["training_runs"]:
        raise UserError(
            f"{path} was computed from other training runs than {path.parent} has now: "
            f"{describe_change((runs, people), tuple(training.values())[1:])}. Remove it, and it "
            f"is computed anew: rm {shlex.quote(str(path))}"
        )
    return stored


def read_statistics(path: str | Path, method: str, n_rois: int) -> dict[str, np.ndarray]:
    """``median`` and ``iqr`` (float32 ``[R]``) of a file that the user names.

    That is the normalization.npz of a data-set folder, or any .npz of two arrays ``median`` and
    ``iqr``.

    Raises:
        UserError: if it cannot be read, holds none for ``method`` or several, or they do not fit.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            stored = dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"the statistics {path} cannot be read: {error}") from error
    if "median" in stored or "iqr" in stored:
        return check_statistics(stored, n_rois, str(path))
    entries = sorted(key.removesuffix("/median") for key in stored if key.endswith("/median"))
    of_method = [key for key in entries if key.startswith(f"{method}/")]
    if len(of_method) != 1:
        raise UserError(
            f"{path} holds {len(of_method)} statistics of {method}; it must be one. It has: "
            f"{', '.join(entries) or ', '.join(stored) or 'nothing'}. Write the one to be used to "
            "an .npz of two arrays, median and iqr, one number for each ROI."
        )
    stats = {name: stored[f"{of_method[0]}/{name}"] for name in ("median", "iqr")}
    return check_statistics(stats, n_rois, str(path))


def check_statistics(stats: Mapping[str, Any], n_rois: int, where: str) -> dict[str, np.ndarray]:
    """Return ``median`` and ``iqr`` as float32 ``[R]``, if they can be used.

    Raises:
        UserError: if one is missing, has another shape or is not finite, or an IQR is not above 0.
    """
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
