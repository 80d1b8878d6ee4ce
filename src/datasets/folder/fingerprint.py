"""A fingerprint of runs: tells whether a file was computed from these runs or from others."""

import hashlib
import json

import numpy as np

from . import DataFolder

# Of each run, in four places, so that an ROI without signal does not hide the others. Neighbouring
# values share a page of the file: a cold read of 40,000 runs touches 160,000 pages.
_PLACES, _VALUES_PER_PLACE = 4, 16


def runs_fingerprint(folder: DataFolder, rows: np.ndarray) -> str:
    """SHA-256 of who and what the runs ``rows`` are, in that order.

    It covers participant, session, run, frames, TR, split and bad ROIs of each run, the ROI labels
    in order, and a sample of 64 values of each series. Two people whose rows or series are swapped
    change it; phenotypes, other rows of the table and the place of the folder do not.
    """
    rows = np.asarray(rows, dtype=np.int64)
    runs = folder.runs.iloc[rows]
    table = {
        "roi_labels": list(folder.roi_labels),
        "frames": folder.frames[rows].tolist(),
        "tr": runs["tr"].to_numpy(np.float64).tolist(),
        "bad_rois": [np.flatnonzero(folder.bad_roi_mask(row)).tolist() for row in rows],
        **{name: runs[name].tolist() for name in ("participant_id", "session", "run", "split")},
    }
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode())
    digest.update(_content_sample(folder, rows).tobytes())
    return digest.hexdigest()


def describe_change(was: tuple[int, int], now: tuple[int, int]) -> str:
    """What differs between two sets of runs with these numbers of (runs, people)."""
    if was != now:
        return f"from {was[0]} runs of {was[1]} people; there are {now[0]} of {now[1]}"
    return (
        f"{now[0]} runs of {now[1]} people then and now, but other people, or other series, TR or "
        "bad ROIs of the same people"
    )


def _content_sample(folder: DataFolder, rows: np.ndarray) -> np.ndarray:
    """Values at fixed places of each run, float32 ``[n_runs, 64]``; 20 MB for 40,000 runs."""
    size = folder.frames[rows, None] * folder.n_rois  # [n_runs, 1]
    place = (2 * np.arange(_PLACES) + 1) * size // (2 * _PLACES)  # [n_runs, places]
    within = place[:, :, None] + np.arange(_VALUES_PER_PLACE)
    within = np.minimum(within, size[:, :, None] - 1)  # of a run that has fewer values
    return folder.flat[folder.offsets[rows, None, None] + within]
