"""Features of the examples of a cohort by name: the model's, the baselines', the controls'."""

import copy
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from downstream_tasks.cohort.clips import ExampleClips, lacks_statistics, with_split_statistics
from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.problem import Problem
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.features.adjust import FeatureAdjustment
from downstream_tasks.features.baselines import Features, feature_table
from downstream_tasks.features.encode import FeatureStore, encode_clips, mean_over_clips
from downstream_tasks.features.registry import REGISTRY, Representation
from downstream_tasks.features.series import ExampleSeries, TrainingSeries
from src.pretrained.encoder import Pretrained
from src.utils.progress import progress_bar


class Representations:
    """Features of the examples of a cohort, by the names of :mod:`registry`.

    They are computed when asked for and kept until they are forgotten. Of an event the encoder's
    tokens of the scored patch are used, which have attended to the whole clip. What reads the clip
    has the whole clip too; what reads the run or the patch tells what the patch holds by itself.
    """

    def __init__(
        self,
        config: DownstreamConfig,
        cohort: Cohort,
        pretrained: Pretrained,
        device: torch.device,
    ) -> None:
        self.config, self.cohort, self.pretrained, self.device = config, cohort, pretrained, device
        # A clip of a run may have a start frame too, and no patch of it is scored.
        self.has_events = config.data.unit == "event"
        self.patch = config.data.scored_patch if self.has_events else None
        self.store = FeatureStore(Path(config.output_root) / "features")
        self.adjust = FeatureAdjustment(config.data, cohort)
        self.confounds_removed = False
        self._kept: dict[str, np.ndarray] = {}
        self._fitted_on: dict[str, np.ndarray] = {}  # training examples
        self._of_each_split = lacks_statistics(config.data, pretrained)
        self._of_split: tuple[np.ndarray, Representations] | None = None  # of the last one

    @cached_property
    def clips(self) -> ExampleClips:
        """What the encoder sees; a :class:`UserError` where that depends on the split."""
        config = self.config
        return ExampleClips(self.cohort, config.data, self.pretrained, config.evaluation.clips)

    @cached_property
    def series(self) -> ExampleSeries:
        """What baselines read."""
        frames = self.config.evaluation.baseline_frames
        return ExampleSeries(
            self.cohort, self.config.data, self.pretrained, self.clips, frames, self.patch
        )

    def of(self, problem: Problem | None) -> "Representations":
        """These, or, where clips are normalised by statistics of a split, those of ``problem``.

        Those of the last split are kept: what other splits need is in the feature store.
        """
        if problem is None or not self._of_each_split:
            return self
        data, train = self.config.data, problem.split.train
        if self._of_split is None or not np.array_equal(self._of_split[0], train):
            pretrained = with_split_statistics(self.pretrained, data, self.cohort, train)
            own = Representations(self.config, self.cohort, pretrained, self.device)
            self._of_split = (train, own)
        return self._of_split[1]

    def title(self, name: str, added: str = "") -> str:
        """Name of the row of a baseline, or of a baseline and what is ``added`` to it."""
        title = REGISTRY[name].title_of(self.has_events, self.cohort.type)
        title += f" + {added}" if added else ""
        return f"{title}, confounds removed" if self.confounds_removed else title

    def without_confounds(self) -> "Representations":
        """The same, whose features have the linear effects of ``data.confounds`` removed."""
        other = copy.copy(self)
        other.confounds_removed = True
        return other

    def features(self, name: str, problem: Problem | None = None) -> np.ndarray:
        """Features ``[n_examples, F]``; those of several clips are averaged.

        What is fitted on training people needs the ``problem`` that says who they are: some
        features, and what :mod:`adjust` does to all of them.
        """
        features = self.of(problem).unadjusted(name, problem)
        remove = self.confounds_removed and self.config.data.confounds_from == "features"
        if remove or self.config.data.harmonize is not None:
            return self.adjust(features, problem, remove)
        return features

    def unadjusted(self, name: str, problem: Problem | None = None) -> np.ndarray:
        """The same before :mod:`adjust`."""
        if REGISTRY[name].fitted:
            return self._fitted(REGISTRY[name], problem)
        if name not in self._kept:
            if REGISTRY[name].reads == "encoder":
                readout = REGISTRY[name].kind == "readout"
                source, level = ("model", name) if readout else (name, self.config.evaluation.level)
                encoded = self.encoded(source, level)
                self._kept[name] = mean_over_clips(encoded, self.clips.per_example)
            else:
                self._kept[name] = self._of_series(REGISTRY[name], REGISTRY[name].function)
        return self._kept[name]

    def encoded(self, name: str, level: str) -> np.ndarray:
        """Encoder features of every clip at a level of :func:`encode.encode_clips`.

        The first call for the model encodes all levels that the rows of the table need of it.
        """
        evaluation, entry = self.config.evaluation, REGISTRY[name]
        levels = (level, *evaluation.readouts) if name == "model" else (level,)
        if name == "model" and {*evaluation.stack} & {*evaluation.baselines}:
            levels += (evaluation.level,)
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

    def forget(self, name: str) -> None:
        """Let go of the features of ``name``: connectomes of 40,000 people take 16 GB."""
        if self._of_split is not None:
            self._of_split[1].forget(name)
        self._kept.pop(name, None)
        self._fitted_on.pop(name, None)

    def _fitted(self, entry: Representation, problem: Problem) -> np.ndarray:
        """Features whose function is fitted on the training people, and kept until these change."""
        train = problem.split.train
        if not np.array_equal(self._fitted_on.get(entry.name), train):
            training = TrainingSeries(self.series, entry.reads, train)
            self._kept[entry.name] = self._of_series(entry, entry.function(training))
            self._fitted_on[entry.name] = train
        return self._kept[entry.name]

    def _of_series(self, entry: Representation, function: Features) -> np.ndarray:
        n = len(self.cohort.y)
        examples = progress_bar(range(n), desc=entry.title, unit="example", leave=False)
        series = (self.series.of(example, entry.reads) for example in examples)
        size = self.pretrained.encoder_spec.patch_size
        if entry.by_patch:
            series = ([one.reshape(len(one), -1, size) for one in several] for several in series)
        return feature_table(series, function, n)
