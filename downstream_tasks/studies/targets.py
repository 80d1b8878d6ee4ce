"""Several targets in one run: ``data.target: [age, sex]`` becomes one task for each.

What differs between targets is a mapping by their names: ``data.type: {age: regression, sex:
classification}``. What is not stated for a target keeps its default, but for the type, which its
column tells.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from src.datasets.folder import DataFolder
from src.utils.errors import UserError, nearest
from src.utils.yaml_config import merge, nested

logger = logging.getLogger(__name__)

PER_TARGET = (
    "data.type",
    "data.classes",
    "data.nb_classes",
    "data.ignore_labels",
    "data.label_normalization",
    "evaluation.metric",
    "evaluation.class_weights",
    "published",
)
_FEW, _MANY = 2, 10  # numbers of different values that are classes, and more than are classes


def one_task_per_target(values: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The tasks in a task file's ``values``: the file itself, or one for each of its targets.

    Raises:
        UserError: on targets that are not names, each once, a value for something that is no
            target, or a type that a column does not tell; ``where`` names the source.
    """
    data = values.get("data")
    targets = data.get("target") if isinstance(data, Mapping) else None
    if not isinstance(targets, list | tuple):
        return [dict(values)]
    if not targets or len({*targets}) < len(targets) or not all(type(t) is str for t in targets):
        raise UserError(
            f"{where}: data.target is {list(targets)!r}; allowed: a column, or a list of several, "
            "each once."
        )
    stated = {key: value for key in PER_TARGET if (value := _at(values, key)) is not None}
    classes = stated.get("data.classes")
    if classes and len(targets) > 1 and not isinstance(classes, Mapping):
        raise UserError(
            f"{where}: data.classes is one list, {classes}, for {len(targets)} targets. Say whose "
            f"they are: 'data.classes={{{targets[-1]}: [{', '.join(map(str, classes))}]}}'."
        )
    for key, value in stated.items():
        if _is_by_target(key, value, targets):
            if unknown := [name for name in value if name not in targets]:
                raise UserError(
                    f"{where}: {key} has a value for '{unknown[0]}', which is not in data.target."
                    f"{nearest(unknown[0], targets)} Targets: {', '.join(targets)}."
                )
        elif key == "published":
            logger.warning("published does not say of which target it is, and is not shown")
    return [_task_of(target, targets, values, stated, where) for target in targets]


def _task_of(
    target: str,
    targets: Sequence[str],
    values: Mapping[str, Any],
    stated: Mapping[str, Any],
    where: str,
) -> dict[str, Any]:
    task = dict(values)
    for key, value in stated.items():
        task = _without(task, key)
        if _is_by_target(key, value, targets):
            if target in value:
                task = merge(task, nested(key, value[target]))
        elif key != "published":
            task = merge(task, nested(key, value))
    beside = [name for name in targets if name != target]
    task = merge(task, {"data": {"target": target, "beside": beside}})
    if "type" not in task["data"]:
        task = merge(task, nested("data.type", _type_of(target, task["data"], where)))
    return task


def _is_by_target(key: str, value: Any, targets: Sequence[str]) -> bool:
    """Whether a value is one for each target; ``published`` is a section of its own else."""
    return isinstance(value, Mapping) and (key != "published" or not {*value}.isdisjoint(targets))


def _type_of(target: str, data: Mapping[str, Any], where: str) -> str:
    """Classification or regression, by what the column of ``target`` holds."""
    if data.get("classes"):
        return "classification"
    path = Path(data.get("data_path", ""))
    if data.get("unit") == "event":
        file = path / "events.tsv"
        table = pd.read_csv(file, sep="\t", na_values=["n/a"]) if file.is_file() else {}
    else:
        file, table = path / "participants.tsv", DataFolder(path).runs
    if target not in table:
        raise UserError(f"{file} has no target column '{target}'.{nearest(target, table)}")
    column = table[target].dropna()
    numbers = pd.to_numeric(column, errors="coerce")
    n_values = column.nunique()
    if numbers.isna().any() or n_values <= _FEW:
        return "classification"
    if n_values > _MANY:
        return "regression"
    raise UserError(
        f"{where}: {file} has {n_values} different numbers in '{target}': classes, or a quantity? "
        f"Say it: data.type={{{target}: classification}} or data.type={{{target}: regression}}."
    )


def _at(values: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _without(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    copy = dict(values)
    if not rest:
        copy.pop(first, None)
    elif isinstance(copy.get(first), Mapping):
        copy[first] = _without(copy[first], rest)
    return copy
