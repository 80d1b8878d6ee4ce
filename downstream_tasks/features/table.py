"""Features of the examples of a cohort by name: the model's, the baselines', the controls'."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from downstream_tasks.cohort.clips import ExampleClips
from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.features import baselines
from downstream_tasks.features.encode import FeatureStore, encode_clips, mean_over_clips
from src.datasets.folder import DataFolder
from src.pretrained.encoder import Pretrained

MODEL_NAME = "Brain-JEPA"


ENCODED = ("random_weights", "time_permuted", "held_constant")


TITLES = {
    "fc": "FC",
    "fc_clips": "FC of the clips",
    "roi_stats": "ROI mean and variance",
    "log_sd": "ROI log SD",
    "raw_clip": "Raw clip (whole)",
    "patch_means": "Patch means (whole clip)",
    "raw_patch": "Raw values of the scored patch",
    "patch_mean": "Mean of the scored patch",
    "random_weights": "Untrained encoder",
    "time_permuted": f"{MODEL_NAME}, frames shuffled",
    "held_constant": f"{MODEL_NAME}, held constant",
}


# Of an event, what is called otherwise than of a run. FC keeps its name: rows are compared with it.
EVENT_TITLES = {
    "fc_clips": "FC of the whole clip",
    "roi_stats": "ROI mean and variance (scored patch)",
    "log_sd": "ROI log SD (scored patch)",
}


_OF_RUNS = ("fc", "roi_stats", "log_sd")  # of an event: of its scored patch


_OF_PATCHES = (*_OF_RUNS, "raw_patch", "patch_mean")


class Representations:
    """Features of the examples of a cohort, by name, computed when asked for and then kept.

    ``model`` is the checkpoint's encoder; the other names are those of ``evaluation.baselines``.
    ``fc``, ``roi_stats`` and ``log_sd`` come from the whole run as it is stored, the rest from the
    normalised clips.

    Of an event the encoder's tokens of the scored patch are used, which have attended to the whole
    clip. ``raw_clip``, ``patch_means`` and ``fc_clips`` therefore have the whole clip too; ``fc``,
    ``roi_stats``, ``log_sd``, ``raw_patch`` and ``patch_mean`` tell what the patch holds by itself.
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
        return (EVENT_TITLES if self.clips.has_events else {}).get(name, TITLES[name])

    def features(self, name: str) -> np.ndarray:
        """Features ``[n_examples, F]``; those of several clips are averaged."""
        if name not in self._kept:
            if name == "model" or name in ENCODED:
                encoded = self.encoded(name, self.config.evaluation.level)
                self._kept[name] = mean_over_clips(encoded, self.clips.per_example)
            else:
                self._kept[name] = self._raw(name)
        return self._kept[name]

    def encoded(self, name: str, level: str) -> np.ndarray:
        """Encoder features of every clip at a level of :func:`features.encode_clips`."""
        evaluation = self.config.evaluation
        encoder = self.pretrained.encoder
        if name == "random_weights":
            encoder = self.pretrained.untrained(evaluation.seed)
        return encode_clips(
            encoder,
            self.clips,
            self.store,
            level=level,
            patch=self.patch,
            control=name if name in ("time_permuted", "held_constant") else "none",
            device=self.device,
            batch_size=evaluation.encoder_batch_size,
            num_workers=self.config.data.num_workers,
            bfloat16=evaluation.bfloat16,
            label=TITLES.get(name, MODEL_NAME),
        )

    def _raw(self, name: str) -> np.ndarray:
        functions = {
            "fc": baselines.functional_connectivity,
            "fc_clips": baselines.functional_connectivity,
            "roi_stats": baselines.roi_statistics,
            "log_sd": baselines.log_roi_sd,
            "raw_clip": baselines.raw_values,
            "patch_means": baselines.patch_means(self.pretrained.encoder_spec.patch_size),
            "raw_patch": baselines.raw_values,
            "patch_mean": baselines.patch_means(self.pretrained.encoder_spec.patch_size),
        }
        if self.patch is None and name in _OF_RUNS:
            items = self._whole_runs()
        else:
            items = self._clip_values(self.patch if name in _OF_PATCHES else None)
        return baselines.feature_table(items, functions[name], len(self.cohort.y))

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
