"""The rows beside the model: baselines and controls through the same splits and heads."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from downstream_tasks import baselines
from downstream_tasks.cohort import Cohort
from downstream_tasks.encoders import Pretrained
from downstream_tasks.example_clips import ExampleClips
from downstream_tasks.features import FeatureStore, encode_clips, mean_over_clips
from downstream_tasks.heads import HeadResult, Problem, Row, fit_head
from downstream_tasks.tasks import DownstreamConfig
from src.datasets.folder import DataFolder

logger = logging.getLogger(__name__)

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

FitFeatures = Callable[[np.ndarray, Problem], HeadResult]  # on features [n_examples, F]
FitEncoded = Callable[[str, Problem], HeadResult]  # on an encoder's representation, by its name


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


def baseline_rows(
    representations: Representations,
    problems: Sequence[Problem],
    fit: FitFeatures | None = None,
    head: str = "",
    encoded_fit: FitEncoded | None = None,
    encoded_head: str = "",
) -> list[Row]:
    """The rows of ``evaluation.baselines``.

    Args:
        fit, head: the protocol's own head on features, and its name. By default logistic or ridge
            regression, which FC gets in any case: it is what others report (Brainmarks).
        encoded_fit, encoded_head: in place of these for representations of the encoder.
    """
    config, names = representations.config, representations.config.evaluation.baselines
    plain = "logistic" if config.data.type == "classification" else "ridge"

    def fit_plain(features: np.ndarray, problem: Problem) -> HeadResult:
        return fit_head(plain, features, problem, config.heads)

    if fit is None:
        fit, head = fit_plain, plain
    rows = []
    for name in names:
        logger.info("baseline: %s", name)
        if name == "majority":
            rows.append(no_features_row(representations.cohort, problems))
            continue
        kind = "control" if name in ("time_permuted", "held_constant") else "baseline"
        if name in ENCODED and encoded_fit is not None:
            results = [encoded_fit(name, problem) for problem in problems]
            rows.append(Row(representations.title(name), encoded_head, kind, results))
            continue
        features = representations.features(name)
        fits = {plain: fit_plain} if name == "fc" else {}
        for head_name, fit_one in (fits | {head: fit}).items():
            results = [fit_one(features, problem) for problem in problems]
            rows.append(Row(representations.title(name), head_name, kind, results))
    return rows


def no_features_row(cohort: Cohort, problems: Sequence[Problem]) -> Row:
    """What one gets without looking at the brain: class frequencies, or the mean target."""
    results = []
    for problem in problems:
        train, n_classes, n = problem.split.train, problem.target.n_classes, len(cohort.y)
        y_train = problem.target.y[train]
        if n_classes:
            scores = baselines.majority_scores(y_train, n_classes, n)
        else:
            scores = np.full(n, y_train.mean())
        results.append(HeadResult(scores, {}))
    title = "Majority class" if cohort.is_classification else "Mean of the training people"
    return Row(title, "none", "baseline", results)
