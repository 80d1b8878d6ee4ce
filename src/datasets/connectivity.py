"""Functional connectivity: correlations of ROIs, and their average over a group (method 2)."""

import numpy as np

from ..utils.errors import UserError
from ..utils.progress import progress_bar
from .folder import DataFolder

_MAX_CORRELATION = 1 - 1e-6  # Fisher z of 1 is infinite


def group_connectivity(folder: DataFolder, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Return the group-average functional connectivity of a split, ``[R, R]``, and its rows.

    Pearson correlations become Fisher z, are averaged over the runs of a person, then over people,
    and become correlations again; every person counts the same. A pair of ROIs is averaged over the
    runs in which both are good. One run is in memory at a time.

    Raises:
        UserError: if the split is empty or a pair of ROIs is good together in no run.
    """
    rows = folder.rows(split)
    if not rows.size:
        raise UserError(f"{folder.path} has no run in split {split} to compute gradients from.")
    shape = (folder.n_rois, folder.n_rois)
    total, people = np.zeros(shape), np.zeros(shape, dtype=np.int64)
    by_person = folder.runs.loc[rows].groupby("participant_id", sort=False).groups
    for person_rows in progress_bar(by_person.values(), desc="connectivity", unit="person"):
        z, runs = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        for row in person_rows:
            good = ~folder.bad_roi_mask(row)
            z += _fisher_z(folder.series(row))
            runs += np.outer(good, good)
        seen = runs > 0
        total[seen] += z[seen] / runs[seen]
        people += seen
    if not people.all():
        first, second = (folder.roi_labels[i] for i in np.argwhere(people == 0)[0])
        raise UserError(
            f"{folder.path}: ROIs '{first}' and '{second}' are good together in no run of split "
            f"{split}, so their connectivity is not known. "
            "Write the folder without ROIs that are always constant."
        )
    connectivity = np.tanh(total / people)
    np.fill_diagonal(connectivity, 1.0)
    return connectivity, rows


def _fisher_z(series: np.ndarray) -> np.ndarray:
    """Arctanh of the Pearson correlations of the rows of ``[R, T]``; 0 for bad, zero rows."""
    return np.arctanh(np.clip(correlation(series), -_MAX_CORRELATION, _MAX_CORRELATION))


def correlation(series: np.ndarray) -> np.ndarray:
    """Pearson correlations ``[R, R]`` of the rows of ``[R, T]``; 0 for constant rows."""
    centred = series - series.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)
    return unit @ unit.T
