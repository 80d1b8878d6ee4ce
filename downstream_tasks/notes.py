"""What qualifies an evaluation as a whole, and what was done to its data, in words.

Both are found before the encoder runs, logged, and kept in the results: a number that stands alone
is quoted alone.
"""

import dataclasses
import logging
from collections.abc import Collection, Mapping

import numpy as np

from downstream_tasks.cohort.clips import ExampleClips, lacks_statistics, task_clip_input
from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.comparison import plain_head
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.features.registry import REGISTRY
from src.datasets.fmri import FMRIDataset
from src.datasets.folder import DataFolder
from src.pretrained.encoder import Pretrained

logger = logging.getLogger(__name__)

SLOWEST_SAMPLES = 3.0  # seconds; the paper's data have about 2 (method 7)
_TR_TOLERANCE = 0.25  # of the checkpoint's interval between samples

_SHOWN = 10  # ids

_BASELINE_FRAMES = {"clips": "the frames of the clips", "run": "all frames of a run"}


def qualify(
    config: DownstreamConfig,
    pretrained: Pretrained,
    folder: DataFolder,
    cohort: Cohort,
    test_people: Collection[str],
    seen: Collection[str] | None,
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Notes on the whole evaluation, which are logged too, and the settings of the data by name.

    ``seen`` are the test people whose ids are among those of the pretraining, ``None`` where the
    checkpoint does not say.
    """
    data, lacking = config.data, lacks_statistics(config.data, pretrained)
    method = task_clip_input(data, pretrained).describe_values()
    if lacking:  # every split has statistics of its own; what is asked below does not need them
        data = dataclasses.replace(data, normalization="none")
        method = f"{method}, by statistics of the training people of each split"
    elif pretrained.split_stats is not None:
        method = f"{method}, by statistics of the training people of the split"
    clips = ExampleClips(cohort, data, pretrained, config.evaluation.clips).dataset
    found = [
        pretrained.check_folder(folder),
        _input_note(config, pretrained),
        None if lacking else pretrained.clip_note(clips),
        _interval_note(clips),
        _padding_note(clips),
        *(
            f"left out, {reason}: {left_out.n}"
            for reason, left_out in cohort.dropped_summary.items()
        ),
        _people_note(pretrained, test_people, seen),
        _fine_tuning_note(config, pretrained),
    ]
    notes = tuple(note for note in found if note)
    for note in notes:
        logger.warning("%s", note)
    settings = {
        "time": _describe_time(clips, cohort, config),
        "baselines of runs see": _BASELINE_FRAMES[config.evaluation.baseline_frames],
        "normalisation": method,
        "test people seen in pretraining": (
            "not known" if seen is None else f"{len(seen)} of {len(test_people)}, by id"
        ),
        **_training(config),
    }
    return notes, settings


def training_people(config: DownstreamConfig, pretrained: Pretrained) -> str | None:
    """Where the training people of a fine-tuned checkpoint are listed; ``None`` for the others."""
    if not pretrained.head:
        return None
    if pretrained.split is not None:
        return "in the checkpoint"
    # The release's files and exports name no one.
    return "as split.file says" if config.split.file else "unknown"


def _training(config: DownstreamConfig) -> dict[str, str]:
    """What fine-tuning trains, and what the rows of controls went through."""
    text, ft = {}, config.fine_tune
    if config.protocol == "fine_tune" and ft.lora_rank:
        text["trained"] = f"the head and adapters of rank {ft.lora_rank} (alpha {ft.alpha:g})"
    same = "fine-tuned as the model is" if config.protocol == "fine_tune" else "the model's head"
    frozen = f"frozen features and {plain_head(config)} regression"
    how = {"same": same, "frozen": frozen, "none": "left out"}[config.evaluation.controls]
    asked_for = any(REGISTRY[name].is_control for name in config.evaluation.baselines)
    return text | ({"controls": how} if asked_for and config.protocol != "fingerprint" else {})


def _input_note(config: DownstreamConfig, pretrained: Pretrained) -> str | None:
    """Where the task's input is not what the encoder was trained with."""
    here, there = task_clip_input(config.data, pretrained), pretrained.clip_input
    differences = [
        f"{name} is {_words(value)}, the checkpoint's is {_words(known)}"
        for name, value, known in (
            ("data.normalization", here.normalization, there.normalization),
            ("data.clip_sd", here.clip_sd or "none", there.clip_sd or "none"),
            ("data.global_signal", here.global_signal, there.global_signal),
            ("sampling", here.sampling, there.sampling),
        )
        if known is not None and value != known
    ]
    if not differences:
        return None
    return f"input unlike that of {pretrained.path.name}: {'; '.join(differences)}"


def _words(value: str | float | Mapping[str, float]) -> str:
    """``robust``, ``8``, ``stride 3``."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(f"{name} {number:g}" for name, number in value.items())


def _interval_note(clips: FMRIDataset) -> str | None:
    """A stride belongs to the TR that it was chosen for; copied to slow data, it is a mistake."""
    slowest = clips.sample_intervals.max()
    if slowest <= SLOWEST_SAMPLES:
        return None
    tr = clips.folder.runs["tr"].to_numpy()[clips.rows].max()
    cause = f"the data have a TR of {tr:g} s"
    if slowest > tr:
        cause = f"every frame has {tr:g} s, and data.stride, data.downsample or data.target_tr "
        cause += "leaves frames out: unset them for slow data"
    return (
        f"samples are {slowest:.3g} s apart, where the encoder of the paper has about 2 s; {cause}"
    )


def _padding_note(clips: FMRIDataset) -> str | None:
    padded = int((clips.samples < clips.num_frames).sum())
    if not padded:
        return None
    return (
        f"{padded} of {len(clips.rows)} runs are shorter than a clip and end in zeros "
        "(data.short_runs: pad)"
    )


def _people_note(
    pretrained: Pretrained, test_people: Collection[str], seen: Collection[str] | None
) -> str | None:
    if seen is None:
        return (
            f"whether test people were in the pretraining is not known: {pretrained.path.name} "
            "does not say who was"
        )
    if not seen:
        return None
    shown = ", ".join(sorted(seen)[:_SHOWN]) + (", ..." if len(seen) > _SHOWN else "")
    return (
        f"{len(seen)} of {len(test_people)} test people have the id of someone that the encoder "
        f"was pretrained on (without labels): {shown}"
    )


def _fine_tuning_note(config: DownstreamConfig, pretrained: Pretrained) -> str | None:
    if training_people(config, pretrained) != "unknown":
        return None
    return (
        f"{pretrained.path.name} was fine-tuned on people that it does not name: some may be test "
        "people here. Give the split it was made with, if there is one: split.file"
    )


def _describe_time(clips: FMRIDataset, cohort: Cohort, config: DownstreamConfig) -> str:
    """``TR 0.72 s, every third frame: samples 2.16 s apart; clips of 160 samples, 346 s``."""
    interval = clips.sample_intervals
    steps, n_samples = interval / clips.folder.runs["tr"].to_numpy()[clips.rows], clips.num_frames
    text = f"TR {_span(interval / steps)} s, "
    if clips.clip_input.target_tr is not None:
        text += f"resampled to {clips.clip_input.target_tr:g} s"
    elif (stride := clips.clip_input.stride) == 1:
        text += "every frame"
    else:
        text += f"every {_ordinal(stride)} frame: samples {_span(interval)} s apart"
    text += f"; clips of {n_samples} samples, {_span(interval * n_samples)} s"
    if not (cohort.examples["start"] >= 0).any() and config.evaluation.clips > 1:
        text += f", {config.evaluation.clips} a run"
    return text


def _span(values: np.ndarray) -> str:
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return low if low == high else f"{low} to {high}"


def _ordinal(n: int) -> str:
    return {2: "second", 3: "third"}.get(n, f"{n}th")
