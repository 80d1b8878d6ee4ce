"""The runs of a plan: the config of each arm, seed and fold, checked before anything is written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.ablation.experiment import Arm, DataSet, Plan
from scripts.ablation.folds import Fold, fold_folder
from scripts.ablation.runs import Run, placed
from src.config import Config, config_from_dict
from src.datasets.folder import DataFolder
from src.datasets.micro_batches import MicroBatchSampler
from src.utils.errors import UserError
from src.utils.yaml_config import merge, nested, read_yaml


def plan_runs(
    plan: Plan,
    out: Path,
    sources: Mapping[str, DataFolder],
    folds: Mapping[str, Sequence[Fold]],
) -> tuple[Run, ...]:
    """Every run of the plan, configs checked: all arms of a seed and fold, then of the next.

    ``sources`` and ``folds`` are those of each data set, by its label.

    Raises:
        UserError: naming the arm, the key and what is allowed.
    """
    base = read_yaml(plan.experiment.pretrain)
    found = []
    for data in plan.data:
        for seed in plan.experiment.seeds:
            for fold in folds[data.label]:
                source = sources[data.label]
                found += [
                    _make_run(plan, base, out, arm, data, seed, fold, source) for arm in plan.arms
                ]
    return tuple(found)


def _make_run(
    plan: Plan,
    base: Mapping[str, Any],
    out: Path,
    arm: Arm,
    data: DataSet,
    seed: int,
    fold: Fold,
    source: DataFolder,
) -> Run:
    data_dir = fold_folder(out, data, fold.number)
    several = len(plan.data) > 1
    name = f"seed{seed}_fold{fold.number}"
    name = f"{data.label}_{name}" if several else name
    path = out / "runs" / arm.name / name
    values = dict(base)
    own: dict[str, Any] = {}
    if data.gradients is not None:
        own["data.gradient_csv_path"] = str(data_dir / "gradients.csv")
    own |= {**placed(data.set, data_dir), **placed(arm.overrides, data_dir)}
    own |= {"data.data_dir": str(data_dir), "logging.folder": str(path / "pretrain")}
    for key, value in {**own, "meta.seed": seed}.items():
        values = merge(values, nested(key, value))
    where = f"{plan.experiment.pretrain}, arm {arm.name}"
    config = config_from_dict(values, where)
    if config.data.crop_size[0] != source.n_rois:
        raise UserError(
            f"{where}: data.crop_size has {config.data.crop_size[0]} ROIs, {source.path} has "
            f"{source.n_rois}. Say so for this data set: set: {{data.crop_size: [{source.n_rois}, "
            f"{config.data.crop_size[1]}]}}"
        )
    per_epoch = _steps_per_epoch(config, _training_runs(source, fold, config))
    config = _with_steps(config, arm.steps, plan.experiment.warmup, per_epoch, where)
    tasks = tuple(task for task in plan.tasks if not task.data or data.label in task.data)
    total = per_epoch * config.optimization.epochs
    return Run(path, arm, seed, fold.number, data, data_dir, config, tasks, total)


def _training_runs(source: DataFolder, fold: Fold, config: Config) -> int:
    """How many runs the data set of this fold will train on."""
    clip_input = config.clip_input
    runs = source.runs.loc[
        source.rows(bad_rois="exclude" if clip_input.bad_rois == "exclude" else "keep")
    ]
    runs = runs[runs["participant_id"].isin(fold.people("train"))]
    if clip_input.short_runs == "skip":
        runs = runs[runs["frames"] >= clip_input.frames_needed(runs["tr"].to_numpy())]
    return len(runs)


def _steps_per_epoch(config: Config, clips: int) -> int:
    return MicroBatchSampler(
        clips,
        batch_size=config.data.batch_size,
        accumulation=config.meta.accumulation_steps,
        repeats=config.data.repeats,
    ).steps_per_epoch


def _with_steps(
    config: Config, steps: int | None, warmup: float | None, per_epoch: int, where: str
) -> Config:
    """The config with epochs for ``steps`` (the nearest number, at least one) and its warm-up."""
    opt = config.optimization
    epochs = opt.epochs if steps is None else max(1, round(steps / per_epoch))
    own = {"epochs": epochs, "warmup": opt.warmup if warmup is None else warmup * epochs}
    values = merge(config.to_dict(), {"optimization": own})
    return config_from_dict(values, where)


def check_tasks(runs: Sequence[Run]) -> None:
    """Read every task file as every run will; :class:`UserError` at what is wrong in one."""
    for run in runs:
        for task in run.tasks:
            run.results_folder(task)
