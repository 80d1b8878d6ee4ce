"""Features of the examples of a cohort by name: the model's, the baselines', the controls'."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from downstream_tasks.cohort.clips import ExampleClips
from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.features.baselines import feature_table
from downstream_tasks.features.encode import FeatureStore, encode_clips, mean_over_clips
from downstream_tasks.features.registry import REGISTRY
from src.datasets.folder import DataFolder
from src.pretrained.encoder import Pretrained


class Representations:
    """Features of the examples of a cohort, by the names of :mod:`registry`.

    They are computed when asked for and then kept. Of an event the encoder's tokens of the scored
    patch are used, which have attended to the whole clip. What reads the clip has the whole clip
    too; what reads the run or the patch tells what the patch holds by itself.
    """

    def __init__(
        self,
        config: DownstreamConfig,
        cohort: Cohort,
        pretrained: Pretrained,
        device: torch.device,
    ) -> None:
        self.config, self.cohort, self.pretrained, self.device = config, cohort, pretrained, device
        self.clips = ExampleClips(cohort, config.data, pretrained, config.evaluation.clips)
        self.patch = config.data.scored_patch if self.clips.has_events else None
        self.store = FeatureStore(Path(config.output_root) / "features")
        self._kept: dict[str, np.ndarray] = {}

    def title(self, name: str) -> str:
        """Name of the row of a baseline."""
        regression = not self.cohort.is_classification
        return REGISTRY[name].title_of(self.clips.has_events, regression)

    def features(self, name: str) -> np.ndarray:
        """Features ``[n_examples, F]``; those of several clips are averaged."""
        if name not in self._kept:
            if REGISTRY[name].reads == "encoder":
                readout = REGISTRY[name].kind == "readout"
                source, level = ("model", name) if readout else (name, self.config.evaluation.level)
                encoded = self.encoded(source, level)
                self._kept[name] = mean_over_clips(encoded, self.clips.per_example)
            else:
                self._kept[name] = self._raw(name)
        return self._kept[name]

    def encoded(self, name: str, level: str) -> np.ndarray:
        """Encoder features of every clip at a level of :func:`encode.encode_clips`.

        The first call for the model encodes the levels of all ``evaluation.readouts`` with it.
        """
        evaluation, entry = self.config.evaluation, REGISTRY[name]
        levels = (level, *evaluation.readouts) if name == "model" else (level,)
        levels = tuple(dict.fromkeys(levels))
        encoder = self.pretrained.encoder
        if entry.untrained:
            encoder = self.pretrained.untrained(evaluation.seed)
        arrays = encode_clips(
            encoder,
            self.clips,
            self.store,
            levels=levels,
            patch=self.patch,
            control=name if entry.function else "none",
            device=self.device,
            batch_size=evaluation.encoder_batch_size,
            num_workers=self.config.data.num_workers,
            bfloat16=evaluation.bfloat16,
            label=entry.title,
        )
        return arrays[levels.index(level)]

    def _raw(self, name: str) -> np.ndarray:
        entry, size = REGISTRY[name], self.pretrained.encoder_spec.patch_size

        def function(series: np.ndarray) -> np.ndarray:
            if entry.by_patch:
                series = series.reshape(len(series), -1, size)
            return entry.function(series)

        if entry.reads == "run" and self.patch is None:
            items = self._whole_runs()
        else:
            items = self._clip_values(None if entry.reads == "clip" else self.patch)
        return feature_table(items, function, len(self.cohort.y))

    def _whole_runs(self) -> Iterator[tuple[int, np.ndarray]]:
        folder = DataFolder(self.config.data.data_path)
        for example, row in enumerate(self.cohort.examples["row"].to_numpy()):
            yield example, folder.series(row)

    def _clip_values(self, patch: int | None) -> Iterator[tuple[int, np.ndarray]]:
        size = self.pretrained.encoder_spec.patch_size
        part = slice(None) if patch is None else slice(patch * size, (patch + 1) * size)
        for item in range(len(self.clips)):
            clip = self.clips[item]
            yield clip["example"], clip["fmri"].numpy()[0, :, part]
