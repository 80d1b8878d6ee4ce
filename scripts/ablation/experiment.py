"""The file of an experiment: arms of pretraining, data, tasks, and the endpoints declared first.

    name: positions
    question: Does it matter where an ROI is said to lie?
    prediction: Gradients above indices, by less than the SD between seeds.
    stage: choose                       # or report, see scripts/ablation/folds.py
    pretrain: configs/experiments/pretrain/small.yaml
    data: [{folder: data/demo_connattractor, make: [COMMAND, ...]}]
    arms:                               # name -> what differs from ``pretrain``
      origin: {meta.add_w: origin}
      mapping: {meta.add_w: mapping}
      mapping_wide: {like: mapping, meta.embed_dim: 192}
    seeds: [0, 1, 2]
    folds: 5
    steps: 600
    evaluate: [demo_imputation]
    endpoints: [{task: demo_imputation, metric: r2, against: untrained}]

``grid`` (keys and lists of values) takes the place of ``arms``. As in every config here, ``base``
names another experiment that holds what this one does not say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from scripts.ablation.arms import Arm, check_overrides, is_name, read_arms
from src.utils.errors import UserError, nearest
from src.utils.yaml_config import (
    NOT_EMPTY,
    Count,
    Limit,
    Natural,
    from_dict,
    plain,
    read_yaml,
)

UNTRAINED, BEST_RAW, ARM = "untrained", "best_raw", "arm "

Stage = Literal["choose", "report"]
Share = Annotated[float, Limit("above 0 and below 1", lambda x: 0 < x < 1)]
Name = Annotated[str, Limit("a name of letters, digits and _ . = + - ,", is_name)]


@dataclass(frozen=True)
class DataSet:
    """A data-set folder, the commands that make it, and what it changes in every arm."""

    folder: str
    name: str = ""  # unset: the last part of the folder
    make: tuple[str, ...] = ()  # with {data_dir}; said where the folder is missing
    gradients: Count | None = 30  # components computed for each fold; null: none
    set: Any = field(default_factory=dict)  # section.key: value

    @property
    def label(self) -> str:
        """What the data set is called in folders and tables."""
        return self.name or Path(self.folder).name


@dataclass(frozen=True)
class Task:
    """A task file of the evaluation, and what is changed in it."""

    task: str
    name: str = ""  # unset: that of the task; two of one task need names
    data: tuple[str, ...] = ()  # only on these data sets; empty: all
    set: Any = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What the task is called in folders and tables."""
        return self.name or Path(self.task).stem


@dataclass(frozen=True)
class Endpoint:
    """What is compared: a row of a task, with another row of the same arm or with another arm.

    Attributes:
        method: a row; empty for that of the model, if it has one only. ``best_raw+model`` is the
            model's features stacked on the best row without an encoder.
        against: ``untrained``, ``best_raw`` (the best row without an encoder, picked on these very
            people, in its favour), the name of a row, or ``arm NAME`` (the same row of that arm).
        arms: whose rows; empty for all.
        data: on these data sets; empty for all.
    """

    task: str
    metric: str
    against: str
    method: str = ""
    variant: str = ""
    arms: tuple[str, ...] = ()
    data: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The endpoint in one line, without arms and data."""
        what = " ".join(filter(None, (self.task, self.variant, self.method or "model")))
        return f"{what}: {self.metric} against {self.against}"


@dataclass(frozen=True)
class Experiment:
    """An experiment file, checked."""

    name: Name
    pretrain: str
    data: Any
    evaluate: Any
    question: str = ""
    prediction: str = ""
    stage: Stage = "choose"
    arms: Any = field(default_factory=dict)
    grid: Any = field(default_factory=dict)
    seeds: Annotated[tuple[Natural, ...], NOT_EMPTY] = (0,)
    folds: Count = 1  # 1: the split of the data folder
    split_seed: Natural = 0
    valid: Share = 0.15  # of the people outside of a fold, for the monitors and for choosing heads
    steps: Count | None = None  # of training, rounded to epochs; unset: the config's epochs
    warmup: Share | None = None  # of the steps; unset: the config's epochs
    endpoints: Any = ()
    chosen_by: tuple[str, ...] = ()  # folders of experiments by which the arms were chosen


@dataclass(frozen=True)
class Plan:
    """An experiment whose parts have been read: data sets, arms, tasks, endpoints."""

    experiment: Experiment
    data: tuple[DataSet, ...]
    arms: tuple[Arm, ...]
    tasks: tuple[Task, ...]
    endpoints: tuple[Endpoint, ...]
    values: Mapping[str, Any]  # the file, as plain types

    @property
    def axis(self) -> tuple[str, dict[str, float]] | None:
        """The one key in which the arms differ and their numbers in it, if there is such a key."""
        values = {arm.name: {"steps": arm.steps, **arm.overrides} for arm in self.arms}
        keys = sorted({key for each in values.values() for key in each})
        differ = [key for key in keys if len({str(v.get(key)) for v in values.values()}) > 1]
        if len(differ) != 1 or len(values) < 2:
            return None
        found = {name: each.get(differ[0]) for name, each in values.items()}
        is_number = all(type(value) in (int, float) for value in found.values())
        return (differ[0], found) if is_number else None


def read_experiment(path: str | Path) -> Plan:
    """Read an experiment file; :class:`UserError` at the first thing that is wrong in it."""
    return plan_from_dict(read_yaml(path), str(path))


def plan_from_dict(values: Mapping[str, Any], where: str) -> Plan:
    """As :func:`read_experiment`, of values read from ``where``."""
    experiment = from_dict(Experiment, values, where)
    data = _items(DataSet, experiment.data, "data", "folder", where)
    tasks = _items(Task, experiment.evaluate, "evaluate", "task", where)
    for kind, names in (("data", [d.label for d in data]), ("evaluate", [t.label for t in tasks])):
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{where}: {kind} holds '{twice[0]}' twice; give each its own name.")
    for item in (*data, *tasks):
        if not isinstance(item.set, Mapping):
            raise UserError(f"{where}: set of {item.label} is {item.set!r}; keys are needed.")
    for each in data:
        check_overrides(each.set, f"{where}: data {each.label}")
    arms = read_arms(experiment.arms, experiment.grid, experiment.steps, where)
    endpoints = _items(Endpoint, experiment.endpoints, "endpoints", "", where, may_be_empty=True)
    plan = Plan(experiment, data, arms, tasks, endpoints, plain(dict(values)))
    _check_names(plan, where)
    return plan


def _items(
    cls: type, value: Any, key: str, short: str, where: str, may_be_empty: bool = False
) -> tuple:
    """A list of ``cls``, one of which may stand alone, and as text for its key ``short``."""
    items = value if isinstance(value, list | tuple) else [value]
    if not items and not may_be_empty:
        raise UserError(f"{where}: {key} is empty; name at least one.")
    built = []
    for number, item in enumerate(items, 1):
        if isinstance(item, str) and short:
            item = {short: item}
        if not isinstance(item, Mapping):
            raise UserError(f"{where}: {key} {number} is {item!r}; keys are needed.")
        built.append(from_dict(cls, item, f"{where}: {key} {number}"))
    return tuple(built)


# --- names that refer to others ------------------------------------------------------------------


def _check_names(plan: Plan, where: str) -> None:
    arms, data = [arm.name for arm in plan.arms], [each.label for each in plan.data]
    tasks = [task.label for task in plan.tasks]
    for task in plan.tasks:
        _known(task.data, data, f"{where}: evaluate {task.label}: data")
    for number, endpoint in enumerate(plan.endpoints, 1):
        what = f"{where}: endpoints {number}"
        _known((endpoint.task,), tasks, f"{what}: task")
        _known(endpoint.arms, arms, f"{what}: arms")
        _known(endpoint.data, data, f"{what}: data")
        if endpoint.against.startswith(ARM):
            _known((endpoint.against.removeprefix(ARM),), arms, f"{what}: against arm")
    if len(set(plan.experiment.seeds)) < len(plan.experiment.seeds):
        raise UserError(f"{where}: seeds holds a number twice.")


def _known(names: Sequence[str], known: Sequence[str], where: str) -> None:
    for name in names:
        if name not in known:
            near = nearest(name, known)
            raise UserError(f"{where}: '{name}' is none of {', '.join(known)}.{near}")
