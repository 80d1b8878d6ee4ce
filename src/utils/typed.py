"""YAML files and ``key=value`` overrides into typed dataclasses, with errors that name the key."""

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from src.utils.errors import UserError, nearest

T = TypeVar("T")

# ---------------------------------------------------------------------------- nested mappings


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping; a missing, unreadable or empty file is a :class:`UserError`."""
    path = Path(path)
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise UserError(f"no config file {path}.{nearest(path.name, siblings)}")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold sections of keys, but it is {type(values).__name__}.")
    return values


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``section.key=value`` into the key and its value, which is read as YAML."""
    name, equals, value = text.partition("=")
    if not (equals and all(name.split("."))):
        raise UserError(f"'{text}' is not an override; write section.key=value.")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"override '{text}': the value is not valid YAML.") from error


def nested(name: str, value: Any) -> dict[str, Any]:
    """Return ``{"a": {"b": value}}`` for the name ``a.b``."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def merge(base: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings key by key; ``new`` wins."""
    merged = dict(base)
    for key, value in new.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], free: Collection[str] = ()
) -> list[str]:
    """Say ``key is X, was Y`` for each key in which two nested configs differ, in their order.

    Keys (``section.key``) and whole sections named in ``free`` may differ. A key that one side
    lacks counts as ``None``.
    """
    here, there = _flat(ours), _flat(theirs)
    return [
        f"{key} is {here.get(key)!r}, was {there.get(key)!r}"
        for key in here | there
        if here.get(key) != there.get(key) and not (key in free or key.partition(".")[0] in free)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a.b": value}`` for ``{"a": {"b": value}}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


# -------------------------------------------------------------------------------- dataclasses


def from_dict(cls: type[T], values: Mapping[str, Any], where: str, prefix: str = "") -> T:
    """Build dataclass ``cls``, nested ones too, from ``values`` read from ``where``.

    An unknown key, a missing one without a default and a value of the wrong type each raise a
    :class:`UserError` naming the key, the value, what is allowed and the nearest valid key.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            kind = "section" if any(dataclasses.is_dataclass(h) for h in hints.values()) else "key"
            raise UserError(
                f"{where}: unknown {kind} '{prefix}{key}'.{nearest(str(key), fields)} "
                f"Valid here: {', '.join(fields)}."
            )
    arguments = {}
    for name, spec in fields.items():
        key = prefix + name
        if name in values:
            arguments[name] = _convert(hints[name], values[name], where, key)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: key '{key}' is missing; expected {_describe(hints[name])}.")
    return cls(**arguments)


def plain(value: Any) -> Any:
    """Tuples as lists, so that YAML and ``weights_only`` loading need no extra types."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    def wrong() -> UserError:
        options = [str(o) for o in typing.get_args(hint)] if _is_literal(hint) else []
        hint_text = nearest(str(value), options)
        return UserError(f"{where}: {key} is {value!r}; allowed: {_describe(hint)}.{hint_text}")

    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: '{key}' must be a section of keys, but it is {value!r}.")
        return from_dict(hint, value, where, prefix=f"{key}.")
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        (inner,) = [a for a in args if a is not type(None)]
        return _convert(inner, value, where, key)
    if _is_literal(hint):
        if value not in args:
            raise wrong()
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise wrong()
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise wrong()
        return tuple(_convert(h, v, where, key) for h, v in zip(inner, value, strict=True))
    if hint is float and not isinstance(value, bool):
        try:  # YAML 1.1 reads 1e-6, without a point, as text
            number = float(value)
        except (TypeError, ValueError):
            raise wrong() from None
        if not math.isfinite(number):
            raise wrong()
        return number
    if type(value) is not hint:
        raise wrong()
    return value


def _is_literal(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal


def _describe(hint: Any) -> str:
    """What a key may hold, in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if a is type(None) else _describe(a) for a in args)
    if _is_literal(hint):
        return ", ".join(str(a) for a in args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"a list of {_describe(args[0])}"
        return "[" + ", ".join(_describe(a) for a in args) + "]"
    names = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
    return names.get(hint, str(hint))
