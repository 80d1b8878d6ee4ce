"""The series that baselines are computed from, one example at a time."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from downstream_tasks.cohort.clips import ExampleClips
from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.config import DataConfig
from downstream_tasks.features.registry import Reads
from src.datasets.folder import DataFolder
from src.pretrained.encoder import Pretrained


class ExampleSeries:
    """What the examples of a cohort give to read; see :class:`registry.Representation`.

    Args:
        clips: normalised, as the encoder sees them.
        frames: of a run, the frames of its clips or all of them.
        patch: the scored one, where examples are events.
    """

    def __init__(
        self,
        cohort: Cohort,
        data: DataConfig,
        pretrained: Pretrained,
        clips: ExampleClips,
        frames: Literal["clips", "run"],
        patch: int | None = None,
    ) -> None:
        self.clips, self.frames, self.patch = clips, frames, patch
        self.patch_size = pretrained.encoder_spec.patch_size
        as_stored = {"normalization": "none", "clip_sd": None, "global_signal": "keep"}
        stored = dataclasses.replace(data, **as_stored, statistics_file=None)
        self.stored = ExampleClips(cohort, stored, pretrained, clips.clips)
        self._folder = DataFolder(data.data_path)
        self._rows = cohort.examples["row"].to_numpy()

    def reads_whole_runs(self, reads: Reads) -> bool:
        """Whether a kind of reading sees every frame of a run, whatever the model sees."""
        return reads == "whole_run" or (
            reads == "run" and self.patch is None and self.frames == "run"
        )

    def note(self, reads: Reads) -> str | None:
        """What is to be said of a row that has seen more of the runs than the model."""
        if not self.reads_whole_runs(reads):
            return None
        frames, tr = self._folder.frames, self._folder.runs["tr"].to_numpy(np.float64)
        whole, seen = np.median((frames * tr)[self._rows]), np.median(self.clips.seconds())
        if whole <= seen:
            return None
        return f"sees all frames of a run ({whole:.0f} s, median), the model {seen:.0f} s of it"

    def of(self, example: int, reads: Reads) -> list[np.ndarray]:
        """Series ``[R, T]`` of an example, several where it has several clips."""
        if self.reads_whole_runs(reads):
            return [self._folder.series(self._rows[example])]
        k = self.clips.per_example
        items = range(example * k, (example + 1) * k)
        if reads == "run" and self.patch is None:
            measured = [
                self.stored[item]["fmri"].numpy()[0, :, : self.stored.measured(item)]
                for item in items
            ]
            return [np.concatenate(measured, axis=1)]
        part = slice(None)
        if reads != "clip":
            part = slice(self.patch * self.patch_size, (self.patch + 1) * self.patch_size)
        return [self.clips[item]["fmri"].numpy()[0, :, part] for item in items]


class TrainingSeries(Sequence[np.ndarray]):
    """Series of some examples, each read when it is asked for."""

    def __init__(self, series: ExampleSeries, reads: Reads, examples: np.ndarray) -> None:
        self._series, self._reads, self._examples = series, reads, examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, i: int) -> np.ndarray:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return np.concatenate(self._series.of(int(self._examples[i]), self._reads), axis=1)
