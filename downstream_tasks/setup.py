"""What every protocol begins with: checkpoint, labelled people, checked splits, targets."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from downstream_tasks.cohort import Cohort, load_cohort
from downstream_tasks.encoders import Pretrained
from downstream_tasks.example_clips import clip_geometry, clip_sampling
from downstream_tasks.heads import Problem, make_target
from downstream_tasks.preparation import DEFAULT_NORMALIZATION
from downstream_tasks.pretrained import load_pretrained
from downstream_tasks.splits import assert_disjoint, load_split, make_splits, split_path
from downstream_tasks.tasks import DownstreamConfig
from src.datasets.folder import DataFolder
from src.utils.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """A task ready to be evaluated: one problem per seed."""

    config: DownstreamConfig
    pretrained: Pretrained
    folder: DataFolder
    cohort: Cohort
    problems: Sequence[Problem]


def load_model(config: DownstreamConfig) -> tuple[Pretrained, DataFolder]:
    """The checkpoint and the data folder, whose ROIs must agree.

    Raises:
        UserError: on either that cannot be read, a contradiction, or ROIs in another order.
    """
    model = config.model
    if model.load_path is None:
        raise UserError("model.load_path (--load_path) is missing: the checkpoint to evaluate.")
    pretrained = load_pretrained(
        model.load_path,
        which=model.network,
        load_epoch=model.load_epoch,
        model_name=model.model_name,
        num_heads=model.num_heads,
        crop_size=model.crop_size,
        patch_size=model.patch_size,
        pred_depth=model.pred_depth,
        pred_emb_dim=model.pred_emb_dim,
        add_w=model.add_w,
        gradient_csv_path=config.data.gradient_csv_path,
        attn_mode=model.attn_mode,
    )
    folder = DataFolder(config.data.data_path)
    pretrained.check_folder(folder)
    return pretrained, folder


def prepare(
    config: DownstreamConfig, *, stored_splits: bool = False, write_splits: bool = True
) -> Evaluation:
    """Load everything; write the splits into the output folder unless ``write_splits`` is off.

    With ``stored_splits`` they are those that an earlier run wrote there.

    Raises:
        UserError: as :func:`load_model`, :func:`load_cohort` and :func:`make_splits`.
    """
    pretrained, folder = load_model(config)
    cohort = load_cohort(folder, config.data, clip_geometry(config.data, pretrained))
    if stored_splits:
        splits = [load_split(split_path(config.output_dir, s), cohort) for s in config.seeds]
        for split in splits:
            assert_disjoint(cohort, split)
    else:
        target_folder = config.output_dir if write_splits else None
        splits = make_splits(cohort, config.split, config.seeds, target_folder)
    problems = [
        Problem(
            cohort,
            split,
            make_target(cohort, split, config.data.label_normalization),
            config.metric,
            seed,
        )
        for seed, split in zip(config.seeds, splits, strict=True)
    ]
    counts = {part: len(set(cohort.people[m])) for part, m in splits[0].parts().items()}
    logger.info(
        "%s: %d people, %d scored %ss; train %d, valid %d, test %d",
        config.name,
        cohort.summary()["n_people"],
        len(cohort.units),
        config.data.unit,
        *counts.values(),
    )
    return Evaluation(config, pretrained, folder, cohort, problems)


def describe_checkpoint(config: DownstreamConfig, pretrained: Pretrained) -> dict[str, Any]:
    """Which weights, and which input they had, for ``results.json``."""
    chosen = config.data.normalization
    known = pretrained.normalization or DEFAULT_NORMALIZATION
    return {
        "path": str(pretrained.path),
        "kind": pretrained.kind,
        "network": config.model.network,
        "model_name": pretrained.facts.model_name,
        **pretrained.facts.to_dict(),
        "atlas": pretrained.atlas,
        "normalization": known if chosen == "checkpoint" else chosen,
        "normalization_in_pretraining": pretrained.normalization,
        "sampling": clip_sampling(config.data, pretrained),
        "sampling_in_pretraining": pretrained.sampling,
    }
