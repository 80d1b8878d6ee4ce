"""The clips of labelled examples, as the model sees them."""

import dataclasses
import hashlib
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.config import DataConfig
from src.datasets.clip_input import DEFAULT_NORMALIZATION, DOWNSAMPLE_STRIDE, ClipInput
from src.datasets.fmri import FMRIDataset
from src.datasets.folder import DataFolder
from src.datasets.folder.format import SERIES_FILE
from src.datasets.folder.statistics import read_statistics, robust_statistics
from src.datasets.normalization import ROBUST_METHODS
from src.pretrained.encoder import Pretrained
from src.utils.errors import UserError


def task_clip_input(data: DataConfig, pretrained: Pretrained) -> ClipInput:
    """How runs become clips: as the task says, else as in pretraining, else by the defaults.

    Statistics of a robust method are those of ``data.statistics_file``, else of the checkpoint,
    else of the training people (:func:`with_split_statistics`), else missing.

    Raises:
        UserError: if the file cannot be read, does not fit, or the method needs none.
    """
    stride = data.stride
    if stride is None and data.downsample is not None:
        stride = DOWNSAMPLE_STRIDE if data.downsample else 1
    clip_input = pretrained.clip_input.changed(
        normalization=None if data.normalization == "checkpoint" else data.normalization,
        stride=None if data.target_tr is not None else stride,
        target_tr=data.target_tr,
        short_runs=data.short_runs,
        bad_rois=data.bad_rois,
        clip_sd=data.clip_sd,
        global_signal=data.global_signal,
    ).completed()
    if data.statistics_file is not None:
        if clip_input.normalization not in ROBUST_METHODS:
            raise UserError(
                f"data.statistics_file is given, but the normalisation is "
                f"{clip_input.normalization}, which uses no statistics. Leave it out, or choose "
                f"data.normalization: {' or '.join(ROBUST_METHODS)}."
            )
        stats = read_statistics(
            data.statistics_file, clip_input.normalization, clip_input.crop_size[0]
        )
        return dataclasses.replace(clip_input, stats=stats)
    if clip_input.normalization in ROBUST_METHODS and clip_input.stats is None:
        return dataclasses.replace(clip_input, stats=pretrained.split_stats)
    return clip_input


def lacks_statistics(data: DataConfig, pretrained: Pretrained) -> bool:
    """Whether clips are normalised by statistics that neither checkpoint nor file holds."""
    clip_input = task_clip_input(data, pretrained)
    return clip_input.normalization in ROBUST_METHODS and clip_input.stats is None


def with_split_statistics(
    pretrained: Pretrained, data: DataConfig, cohort: Cohort, train: np.ndarray
) -> Pretrained:
    """The same with statistics of normalisation where these are missing.

    They are of the runs of the examples ``train``: computed on test people, they would tell of
    them.

    Raises:
        UserError: if there is no training example, or an ROI does not vary.
    """
    if not lacks_statistics(data, pretrained):
        return pretrained
    method = task_clip_input(data, pretrained).normalization
    if not len(train):
        raise UserError(
            f"normalisation {method} needs the median and IQR of each ROI; the checkpoint "
            f"{pretrained.path} holds none, and no one here is a training person. Give them by "
            "data.statistics_file."
        )
    rows = np.unique(cohort.examples["row"].to_numpy()[train])
    stats = robust_statistics(DataFolder(data.data_path), method, rows)
    return dataclasses.replace(
        pretrained, split_stats={name: stats[name] for name in ("median", "iqr")}
    )


class ExampleClips(Dataset):
    """Normalised clips ``[1, R, T]`` of the examples of a cohort.

    ``clips[i]`` (or ``clips[i, epoch]``) is a dict of ``fmri``, ``example`` (its number in the
    cohort), ``item`` (i) and ``seed`` (of what a control draws for it; another one every epoch).
    Item ``e * k + j`` is clip j of the e-th of ``examples``. An example that has a start frame of
    its own (an event) has one clip, whatever ``clips`` says.

    Args:
        examples: numbers of the examples wanted; by default all.
        clips: k clips spread evenly over a run, or "random" for training.
        seed: of random starts.
    """

    def __init__(
        self,
        cohort: Cohort,
        data: DataConfig,
        pretrained: Pretrained,
        clips: int | str = 1,
        examples: np.ndarray | None = None,
        seed: int = 0,
    ) -> None:
        everyone = np.arange(len(cohort.y))
        self.examples = everyone if examples is None else np.asarray(examples)
        chosen = cohort.examples.iloc[self.examples]
        self.starts = chosen["start"].to_numpy()
        self.has_events = bool((self.starts >= 0).any())
        self.clips = 1 if self.has_events else clips
        rows, self._position = np.unique(chosen["row"].to_numpy(), return_inverse=True)
        if lacks_statistics(data, pretrained):  # a data set would take those of its folder's split
            method = task_clip_input(data, pretrained).normalization
            raise UserError(
                f"normalisation {method} needs the median and IQR of each ROI, which the "
                f"checkpoint {pretrained.path} does not hold, and there is no split here whose "
                "training people would give them. Give them by data.statistics_file, or choose "
                f"data.normalization: {DEFAULT_NORMALIZATION}."
            )
        self.dataset = FMRIDataset(
            data.data_path, rows, task_clip_input(data, pretrained), clips=self.clips, seed=seed
        )
        self.per_example = self.dataset.clips_per_run

    def __len__(self) -> int:
        return len(self.examples) * self.per_example

    @property
    def example_of_item(self) -> np.ndarray:
        """Number in the cohort of the example of each item, ``[len(self)]``."""
        return np.repeat(self.examples, self.per_example)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, torch.Tensor | int]:
        i, epoch = item if isinstance(item, tuple) else (item, 0)
        e, clip = divmod(int(i), self.per_example)
        run = int(self._position[e])
        if self.starts[e] >= 0:
            fmri = self.dataset.clip(run, int(self.starts[e]))
        else:
            fmri = self.dataset[run * self.per_example + clip, epoch]["fmri"]
        seed = int(epoch) * len(self) + int(i)
        return {"fmri": fmri, "example": int(self.examples[e]), "item": int(i), "seed": seed}

    def measured(self, item: int) -> int:
        """Samples of the clip ``item`` that were measured; the rest of it is padding."""
        return int(self.dataset.samples[self._position[item // self.per_example]])

    def seconds(self) -> np.ndarray:
        """Time of its run that the clips of each example cover, float64 ``[n_examples]``."""
        dataset = self.dataset
        tr = dataset.folder.runs["tr"].to_numpy(np.float64)[dataset.rows]
        of_clip = dataset.samples * dataset.sample_intervals
        covered = np.empty(len(tr))
        for run in range(len(tr)):  # where clips overlap, what they share counts once
            starts = np.array(dataset.even_starts(run, self.per_example)) * tr[run]
            covered[run] = np.minimum(np.diff(starts, append=np.inf), of_clip[run]).sum()
        return covered[self._position]

    def identity(self) -> dict[str, Any]:
        """What the clips depend on, as plain values: the key of features made from them.

        Of the data it holds what the table says of the runs (it may be edited: a TR, a bad ROI) and
        size and time of the file of series, not its 35 GB.
        """
        folder, dataset = self.dataset.folder, self.dataset
        rows = dataset.rows
        bad = np.array([np.packbits(folder.bad_roi_mask(row)) for row in rows])
        file = (folder.path / SERIES_FILE).stat()
        clip_input = dataset.clip_input
        stats = clip_input.stats or {}
        return {
            "run_order": folder.description["run_order"],
            "series_bytes": file.st_size,
            "series_written": file.st_mtime_ns,
            "runs_and_starts": _digest(dataset.rows[self._position], self.starts),
            "runs": _digest(
                folder.frames[rows],
                folder.offsets[rows],
                folder.runs["tr"].to_numpy(np.float64)[rows],
                bad,
            ),
            "crop_size": [dataset.n_rois, dataset.num_frames],
            "sampling": clip_input.sampling,
            "normalization": clip_input.normalization,
            **clip_input.cleaning,
            "stats": _digest(*(np.asarray(stats[name]) for name in sorted(stats))),
            "clips": self.per_example,
        }


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
