"""The data set the model sees: normalised clips of the runs of a data-set folder."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from ..utils.errors import UserError
from .clip_input import ClipInput
from .clips import (
    even_starts,
    frames_needed,
    random_start,
    samples_available,
    take_clip,
)
from .folder import DataFolder
from .folder.statistics import stored_statistics
from .normalization import ROBUST_METHODS

logger = logging.getLogger(__name__)


class FMRIDataset(Dataset):
    """Clips ``[1, R, T]`` of parcellated BOLD runs, normalised, float32.

    ``dataset[i]`` (or ``dataset[i, epoch]``; ``i`` alone is epoch 0) is a dict of ``fmri``, the
    clip, and ``row``, the run's row in participants.tsv. The start of a random clip depends on
    seed, epoch and row alone, so it is the same for any number of workers and after a resume.

    Args:
        data_dir: a data-set folder (data/README.md).
        split: train, valid, test, several of them, or an integer array of rows.
        clip_input: how a run becomes a clip. Robust statistics that it does not hold are those of
            the folder's training runs that it does not leave out.
        clips: "random", "center", or a number k of clips spread evenly over each run; item
            ``i * k + j`` is then clip j of the i-th run.
        seed: of the random starts.

    Raises:
        UserError: if the folder, the ROI count, an option or the runs' length or TR do not fit.
    """

    def __init__(
        self,
        data_dir: str | Path,
        split: str | Sequence[str] | np.ndarray,
        clip_input: ClipInput,
        *,
        clips: str | int = "random",
        seed: int = 0,
    ) -> None:
        if clips not in ("random", "center") and (type(clips) is not int or clips < 1):
            raise UserError(f"clips is {clips!r}, it must be random, center or a number above 0.")
        self.folder = DataFolder(data_dir)
        self.n_rois, self.num_frames = clip_input.crop_size
        if self.n_rois != self.folder.n_rois:
            raise UserError(
                f"crop_size asks for {self.n_rois} ROIs, {self.folder.path} has "
                f"{self.folder.n_rois} ({self.folder.atlas}); they must be equal."
            )
        self.seed = int(seed)
        self.clips_per_run = clips if isinstance(clips, int) else 1
        self._random = clips == "random"

        rows = self._choose_rows(split, clip_input.bad_rois)
        steps = clip_input.steps(self.folder.runs["tr"].to_numpy()[rows])
        rows, steps = self._treat_short_runs(rows, steps, clip_input.short_runs)
        self.rows = rows
        self._steps = steps
        self._frames, self._offsets = self.folder.frames[rows], self.folder.offsets[rows]
        # Frames at which a clip may start; a run to be padded has one.
        spare = self._frames - frames_needed(self.num_frames, steps)
        self._n_starts = np.maximum(spare, 0) + 1
        self._n_samples = np.minimum(samples_available(self._frames, steps), self.num_frames)
        self._has_bad = np.array([self.folder.bad_roi_mask(row).any() for row in rows], dtype=bool)

        if clip_input.normalization in ROBUST_METHODS and clip_input.stats is None:
            clip_input = replace(clip_input, stats=self._training_statistics(clip_input))
        self.clip_input = clip_input
        self._normalize = clip_input.normalize
        self._map()

    # --- which runs -----------------------------------------------------------------------------

    def _choose_rows(self, split: str | Sequence[str] | np.ndarray, bad_rois: str) -> np.ndarray:
        folder = self.folder
        if isinstance(split, str) or all(isinstance(name, str) for name in split):
            rows = folder.rows(split)
        else:
            rows = np.asarray(split)
            if rows.ndim != 1 or rows.dtype.kind not in "iu":
                raise UserError(f"rows must be whole numbers in one dimension, not {split!r}.")
            if ((rows < 0) | (rows >= len(folder.runs))).any():
                raise UserError(
                    f"rows run from {rows.min()} to {rows.max()}, {folder.path} has rows 0 to "
                    f"{len(folder.runs) - 1}."
                )
            rows = rows.astype(np.int64)
            split = "the given rows"
        n_asked = rows.size
        if bad_rois == "exclude":
            rows = rows[np.isin(rows, folder.rows(bad_rois="exclude"))]
            if n_out := n_asked - rows.size:
                logger.warning(
                    "%s, %s: %d of %d runs left out, as an ROI of them is constant or not finite "
                    "(bad_rois: exclude; zero would keep them)",
                    folder.path,
                    split,
                    n_out,
                    n_asked,
                )
        if not rows.size:
            raise UserError(
                f"{folder.path} has no run for {split}"
                + (
                    f": all {n_asked} have a bad ROI; try bad_rois zero."
                    if n_asked
                    else "; the column split of participants.tsv has "
                    f"{', '.join(sorted(set(folder.runs['split'])))}. Name another split, such as "
                    "logging.monitor_split, or move some people to it."
                )
            )
        return rows

    def _treat_short_runs(
        self, rows: np.ndarray, steps: np.ndarray, short_runs: str
    ) -> tuple[np.ndarray, np.ndarray]:
        frames, needed = self.folder.frames[rows], frames_needed(self.num_frames, steps)
        short = frames < needed
        if not short.any():
            return rows, steps
        worst = int(np.argmax(needed - frames))
        run = self.folder.runs.loc[rows[worst]]
        summary = (
            f"{self.folder.path}: {short.sum()} of {rows.size} runs are too short for a clip of "
            f"{self.num_frames} samples, such as {run.participant_id}/{run.session}/{run.run} with "
            f"{frames[worst]} frames of the {needed[worst]} it needs"
        )
        if short_runs == "error" or (short.all() and short_runs == "skip"):
            raise UserError(
                f"{summary}. Choose a shorter crop_size, a smaller stride or target_tr, or "
                "short_runs pad or skip (skip needs some runs that are long enough)."
            )
        logger.warning("%s (short_runs: %s)", summary, short_runs)
        return (rows[~short], steps[~short]) if short_runs == "skip" else (rows, steps)

    def _training_statistics(self, clip_input: ClipInput) -> dict[str, np.ndarray]:
        """Robust statistics of the training runs that ``clip_input`` does not leave out."""
        bad_rois = "exclude" if clip_input.bad_rois == "exclude" else "keep"
        rows = self.folder.rows("train", bad_rois)
        if clip_input.short_runs == "skip":
            tr = self.folder.runs["tr"].to_numpy()[rows]
            rows = rows[self.folder.frames[rows] >= clip_input.frames_needed(tr)]
        return stored_statistics(self.folder, clip_input.normalization, rows)

    # --- items ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.rows.size * self.clips_per_run

    @property
    def sample_intervals(self) -> np.ndarray:
        """Seconds between the samples of a clip, float64 ``[n_runs]``."""
        return self.folder.runs["tr"].to_numpy()[self.rows] * self._steps

    @property
    def samples(self) -> np.ndarray:
        """Samples of a clip that were measured, int64 ``[n_runs]``; the rest of it is padding."""
        return self._n_samples

    @property
    def participant_ids(self) -> np.ndarray:
        """Participant id of each item, str ``[n_items]``."""
        ids = self.folder.runs["participant_id"].to_numpy(dtype=str)
        return np.repeat(ids[self.rows], self.clips_per_run)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, torch.Tensor | int]:
        i, epoch = item if isinstance(item, tuple) else (item, 0)
        n_items = len(self)
        if not -n_items <= i < n_items:
            raise IndexError(f"item {i} of a data set of {n_items}")
        i, clip = divmod(int(i) % n_items, self.clips_per_run)
        row, n_starts = self.rows.item(i), self._n_starts.item(i)
        if self._random:
            start = random_start(self.seed, int(epoch), row, n_starts)
        else:
            start = even_starts(n_starts, self.clips_per_run).item(clip)
        return {"fmri": self.clip(i, start), "row": row}

    def even_starts(self, i: int, n_clips: int) -> list[int]:
        """Start frames of ``n_clips`` clips spread evenly over the i-th run, none twice."""
        return np.unique(even_starts(self._n_starts.item(i), n_clips)).tolist()

    def center_clip(self, i: int) -> torch.Tensor:
        """Return the normalised clip ``[1, R, T]`` in the middle of the i-th run."""
        return self.clip(i, even_starts(self._n_starts.item(i), 1).item(0))

    def clip(self, i: int, start: int) -> torch.Tensor:
        """Return the normalised clip ``[1, R, T]`` of the i-th run from frame ``start`` on."""
        if not 0 <= start < self._n_starts.item(i):
            last = self._n_starts[i] - 1
            raise IndexError(f"a clip of row {self.rows[i]} starts at 0 to {last}, not {start}")
        run = (self._offsets.item(i), self.n_rois, self._frames.item(i))
        n_samples = self._n_samples.item(i)
        values = take_clip(self._flat, run, start, self._steps.item(i), n_samples)
        bad = None
        if self._has_bad.item(i):
            bad = torch.from_numpy(self.folder.bad_roi_mask(self.rows.item(i)))
        values = self._normalize(values, bad)
        if n_samples < self.num_frames:
            values = F.pad(values, (0, self.num_frames - n_samples))
        return values

    # --- the memory map -------------------------------------------------------------------------

    def _map(self) -> None:
        with warnings.catch_warnings():
            # The map is read-only on purpose, and this tensor is only ever read.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self._flat = torch.from_numpy(self.folder.flat)

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker opens the map itself; a pickled tensor would carry all the data.
        return {name: value for name, value in self.__dict__.items() if name != "_flat"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()
