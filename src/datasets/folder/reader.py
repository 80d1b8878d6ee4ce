"""The data-set folder: all runs in one memory-mapped file, with the tables that describe them.

    timeseries.npy    1-D float32; the runs one after another, each in C order as ``[R, T_run]``
    participants.tsv  one row per run, in the order of the file, "n/a" where a value is missing
    dataset.json      format, atlas, ordered ROI labels, provenance

Runs of different length and TR live together. ``FolderWriter`` makes such a folder, ``DataFolder``
reads one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.errors import UserError, nearest
from .format import (
    DESCRIPTION_FILE,
    KEY_COLUMNS,
    SERIES_FILE,
    SPLITS,
    TABLE_FILE,
    check_labels,
    check_split,
    read_description,
    read_runs,
)
from .writer import FolderWriter

__all__ = ["DataFolder", "FolderWriter"]


class DataFolder:
    """A finished data-set folder, opened for reading; the series stay on disk.

    Attributes:
        path, atlas, roi_labels, n_rois: the folder and its parcellation.
        description: the whole of dataset.json.
        runs: participants.tsv, one row per run; participant_id, session, run and split are text.
        flat: the whole of timeseries.npy, a read-only 1-D float32 view of the memory map.
        frames, offsets: int64 ``[n_runs]``, length of each run and its first element in ``flat``.

    Raises:
        UserError: if a file is missing, unfinished, cut short, or disagrees with another.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.description: dict[str, Any] = read_description(self.path)
        self.atlas: str = self.description["atlas"]
        self.roi_labels = check_labels(self.description["roi_labels"])
        self.n_rois = len(self.roi_labels)
        text_columns = (*KEY_COLUMNS, "split", "bad_rois")
        self.runs = read_runs(self.path, self.description, dict.fromkeys(text_columns, str))
        self.frames = self.runs["frames"].to_numpy(np.int64)
        ends = np.cumsum(self.frames * self.n_rois)
        self.offsets = ends - self.frames * self.n_rois
        self.flat = self._map_series(int(ends[-1]))
        self._bad = self._parse_bad_rois()

    def __reduce__(self) -> tuple[type["DataFolder"], tuple[Path]]:
        # Spawned workers map the file themselves; pickling ``flat`` would send them all of it.
        return DataFolder, (self.path,)

    def _map_series(self, length: int) -> np.ndarray:
        path = self.path / SERIES_FILE
        try:
            series = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise UserError(f"{path} is damaged or cut short: {error}") from error
        if series.dtype != np.float32 or series.shape != (length,):
            raise UserError(
                f"{path} holds {series.dtype} {series.shape}; the tables beside it describe "
                f"float32 ({length},): {self.frames.sum()} frames of {self.n_rois} ROIs."
            )
        return np.asarray(series)  # slicing the np.memmap class itself costs microseconds each time

    def _parse_bad_rois(self) -> dict[int, np.ndarray]:
        number = {label: i for i, label in enumerate(self.roi_labels)}
        bad = {}
        for row, text in self.runs["bad_rois"].dropna().items():
            labels = text.split(";")
            if unknown := [label for label in labels if label not in number]:
                raise UserError(
                    f"{self.path / TABLE_FILE}, line {row + 2}: bad_rois names '{unknown[0]}', "
                    f"which {DESCRIPTION_FILE} does not.{nearest(unknown[0], number)}"
                )
            bad[row] = np.array([number[label] for label in labels])
        return bad

    def series(self, i: int) -> np.ndarray:
        """Return run ``i`` as a read-only float32 view ``[R, T_i]`` of the memory map."""
        start, size = self.offsets[i], self.n_rois * self.frames[i]
        return self.flat[start : start + size].reshape(self.n_rois, -1)

    def bad_roi_mask(self, i: int) -> np.ndarray:
        """Return bool ``[R]``: the ROIs of run ``i`` that are constant or were not finite."""
        mask = np.zeros(self.n_rois, dtype=bool)
        mask[self._bad.get(int(i), [])] = True
        return mask

    def rows(self, split: str | Sequence[str] | None = None, bad_rois: str = "keep") -> np.ndarray:
        """Return the row numbers of a split (or several; None is all but the excluded), in order.

        ``bad_rois="exclude"`` leaves out the runs that have a bad ROI, "keep" does not.
        """
        wanted = SPLITS if split is None else (split,) if isinstance(split, str) else tuple(split)
        for name in wanted:
            check_split(str(self.path), name)
        if bad_rois not in ("keep", "exclude"):
            raise UserError(f"bad_rois is '{bad_rois}', it must be keep or exclude.")
        keep = self.runs["split"].isin(wanted).to_numpy().copy()
        if bad_rois == "exclude":
            keep[list(self._bad)] = False
        return np.flatnonzero(keep)
