"""The arms of an experiment: what differs from its pretraining config, and for how many steps."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from src.config import Config
from src.utils.errors import UserError, nearest
from src.utils.yaml_config import key_names, nearest_keys

# What the laboratory sets itself, for every run.
OWN_KEYS = ("data.data_dir", "logging.folder", "meta.seed")


@dataclass(frozen=True)
class Arm:
    """A pretraining recipe: what differs from the experiment's config, and for how many steps."""

    name: str
    overrides: Mapping[str, Any]
    steps: int | None


def is_name(text: str) -> bool:
    """Whether a folder can be called so on every file system."""
    return re.fullmatch(r"[\w.=+,-]+", text) is not None


def read_arms(arms: Any, grid: Any, steps: int | None, where: str) -> tuple[Arm, ...]:
    """The arms of an experiment, from ``arms`` or ``grid`` of its file.

    ``steps`` are those of an arm that does not say its own.

    Raises:
        UserError: naming ``where``, the arm and what is wrong in it.
    """
    if not isinstance(arms, Mapping) or not isinstance(grid, Mapping) or bool(arms) == bool(grid):
        raise UserError(
            f"{where}: give either arms (a name and overrides for each) or grid (keys and lists of "
            "values)."
        )
    if grid:
        arms = _grid_arms(grid, where)
    read = []
    for name in arms:
        if not is_name(str(name)):
            raise UserError(f"{where}: arm '{name}': letters, digits and _ . = + - , make a name.")
        overrides = _resolved(str(name), arms, where, ())
        own = overrides.pop("steps", steps)
        if own is not None and (type(own) is not int or own < 1):
            raise UserError(f"{where}: arm {name}: steps is {own!r}; allowed: a whole number.")
        check_overrides(overrides, f"{where}: arm {name}")
        if own is not None and "optimization.epochs" in overrides:
            raise UserError(
                f"{where}: arm {name} sets optimization.epochs, which steps ({own}) decides. "
                "Give one of the two."
            )
        read.append(Arm(str(name), overrides, own))
    return tuple(read)


def _grid_arms(grid: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    for key, values in grid.items():
        if not isinstance(values, list | tuple) or not values:
            raise UserError(f"{where}: grid {key} is {values!r}; allowed: a list of values.")
    arms = {}
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        parts = [f"{key.rpartition('.')[2]}={_short(value)}" for key, value in chosen.items()]
        arms[",".join(parts)] = chosen
    return arms


def _short(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", "-", str(value)).strip("-")


def _resolved(name: str, arms: Mapping[str, Any], where: str, above: tuple[str, ...]) -> dict:
    """The overrides of an arm, on top of those of the arm that it is ``like``."""
    own = arms[name] if arms[name] is not None else {}
    if not isinstance(own, Mapping):
        raise UserError(f"{where}: arm {name} is {own!r}; keys such as meta.add_w are needed.")
    own = dict(own)
    like = own.pop("like", None)
    if like is None:
        return own
    if like not in arms:
        raise UserError(f"{where}: arm {name} is like '{like}', no arm.{nearest(str(like), arms)}")
    if like in (*above, name):
        raise UserError(f"{where}: arm {name} is like {like} in a circle.")
    return _resolved(str(like), arms, where, (*above, name)) | own


def check_overrides(overrides: Mapping[str, Any], where: str) -> None:
    """Raise :class:`UserError` at what is no key of pretraining, or one of the laboratory's own."""
    known = key_names(Config)
    for key in overrides:
        if key in OWN_KEYS:
            raise UserError(f"{where}: {key} is set for every run by the laboratory itself.")
        if key not in known:
            near = " or ".join(f"'{name}'" for name in nearest_keys(str(key), Config))
            hint = f" Did you mean {near}?" if near else ""
            raise UserError(f"{where}: no key '{key}' of pretraining.{hint}")
