"""Task files in configs/downstream, and the release's beside them, into one checked config.

Later sources win: dataclass defaults, task file, ``--config`` file, flags.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from downstream_tasks.config import DownstreamConfig
from downstream_tasks.config_checks import task_from_dict
from downstream_tasks.release import PROTOCOL_ALIASES, sections_from_flat
from downstream_tasks.studies.targets import one_task_per_target
from src.utils.errors import UserError, nearest
from src.utils.yaml_config import merge, nested, read_yaml

logger = logging.getLogger(__name__)

TASK_FOLDER = Path("configs/downstream")
_NO_TASKS = ("fine_tune",)  # the release's file of settings, for any task


def load_tasks(
    *sources: str | Path,
    overrides: Mapping[str, Any] | None = None,
    protocol_flags: Mapping[str, Any] | None = None,
) -> list[DownstreamConfig]:
    """Read task files (paths, or names of files in configs/downstream), later ones winning.

    One config for each target, where ``data.target`` is a list.

    What has no effect (flat keys of the release's files, flags of another protocol) is named in one
    line of the log.

    Args:
        overrides: ``section.key`` (or a key of the top level) to a value; wins over the files.
        protocol_flags: flags that set keys of the section of the protocol that is run, if it has
            them; a single number is a grid of one where that section has a grid.

    Raises:
        UserError: naming the file, the key, the value, what is allowed and the nearest key.
    """
    overrides, flags = dict(overrides or {}), dict(protocol_flags or {})
    paths = [task_path(source) for source in sources]
    files = [read_yaml(path) for path in paths]
    named = [values["protocol"] for values in (*files, overrides) if "protocol" in values]
    protocol = str(named[-1]) if named else DownstreamConfig.protocol
    protocol = overrides["protocol"] = PROTOCOL_ALIASES.get(protocol, protocol)
    section = getattr(DownstreamConfig(), protocol, None)
    defaults = vars(section) if dataclasses.is_dataclass(section) else {}

    values: dict[str, Any] = {}
    idle: list[str] = []
    for path, file in zip(paths, files, strict=True):
        content, without_effect = sections_from_flat(file, protocol, defaults, str(path))
        values = merge({"name": path.stem} | values, content)
        idle += without_effect
    for name, value in overrides.items():
        values = merge(values, nested(name, value))
    stated = values.get(protocol)
    rate = stated.get("lr") if isinstance(stated, Mapping) else None
    for key, value in flags.items():
        if key not in defaults:
            idle.append(f"--{key}")
            continue
        if key == "blr" and rate is not None:
            idle.append(f"--blr (lr is {rate})")
        grid = isinstance(defaults[key], tuple) and not isinstance(value, list | tuple)
        values = merge(values, nested(f"{protocol}.{key}", [value] if grid else value))
    if idle:
        logger.warning("without effect for %s: %s", protocol, ", ".join(idle))
    where = " + ".join(map(str, paths)) or "the flags"
    configs = [task_from_dict(task, where) for task in one_task_per_target(values, where)]
    config = configs[0]
    if "blr" in flags and protocol == "linear_probe" and config.linear_probe.recipe == "grid":
        raise UserError(
            f"--blr is one rate, but linear_probe.recipe is grid. Leave that out, or give "
            f"'linear_probe.grid_blr=[{flags['blr']:g}]'."
        )
    return configs


def load_task(*sources: str | Path, **how: Any) -> DownstreamConfig:
    """As :func:`load_tasks`, of one target."""
    (config,) = load_tasks(*sources, **how)
    return config


def read_tasks(*sources: str | Path) -> dict[str, Any]:
    """What the files say, later ones winning; nothing is checked yet."""
    values: dict[str, Any] = {}
    for source in sources:
        values = merge(values, read_yaml(task_path(source)))
    return values


def task_names() -> list[str]:
    """Names of the tasks in configs/downstream."""
    return sorted(p.stem for p in TASK_FOLDER.glob("*.yaml") if p.stem not in _NO_TASKS)


def task_path(source: str | Path) -> Path:
    """Path of a task file given as a path or as a name such as ``hca_sex``."""
    path = Path(source)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path
    named = TASK_FOLDER / f"{path.name}.yaml"
    if not named.is_file():
        if not TASK_FOLDER.is_dir():
            raise UserError(
                f"no task '{source}': it is no file, and the folder of named tasks, {TASK_FOLDER}, "
                f"is not in {Path.cwd()}. Run from the folder of downstream_eval.py (paths of data "
                "are relative to it, too), or name a task file."
            )
        names = task_names()
        raise UserError(
            f"no task '{source}': neither a file nor a name in {TASK_FOLDER}."
            f"{nearest(path.name, names)} Tasks: {', '.join(names)}."
        )
    return named
