"""YAML files and ``key=value`` overrides into typed dataclasses, with errors that name the key."""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import yaml

from .errors import UserError, nearest

T = TypeVar("T")

# ---------------------------------------------------------------------------- nested mappings


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping, on top of the file that its key ``base`` names relative to it, if any.

    Raises:
        UserError: a missing, unreadable or empty file, or a base that leads back to its file.
    """
    return _read_on_base(Path(path), ())


def _read_on_base(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    values = _read_mapping(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{path}: base is {base!r}; allowed: the path of another file.")
    target, above = path.parent / base, (*above, path.resolve())
    if target.resolve() in above:
        circle = " -> ".join(file.name for file in (*above, target))
        raise UserError(f"{path}: base leads in a circle: {circle}.")
    if not target.is_file():
        raise UserError(f"{path}: base: {_no_file(target)}")
    return merge(_read_on_base(target, above), values)


def _read_mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(_no_file(path))
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file in UTF-8; a YAML file is needed.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {_explain(error, text)}.") from error
    if values is None:
        raise UserError(f"{path} is empty; sections of keys are needed.")
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold sections of keys, but it is {values!r:.60}.")
    return values


def _explain(error: yaml.YAMLError, text: str) -> str:
    """The line and what is wrong there, on one line."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    line = text.splitlines()[mark.line] if mark.line < len(text.splitlines()) else ""
    problem = error.problem or error.context
    if line[: mark.column + 1].strip(" ").startswith("\t"):
        problem = "it is indented with a tab; use spaces"
    return f"line {mark.line + 1} ({line.strip()!r}): {problem}"


def _no_file(path: Path) -> str:
    if path.is_dir():
        inside = sorted(path.glob("*.yaml"))
        example = f", such as {inside[0]}" if inside else ""
        return f"{path} is a folder; name a YAML file{example}."
    siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    return f"no config file {path}.{nearest(path.name, siblings)}"


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


# ------------------------------------------------------------------------------------- limits


@dataclass(frozen=True)
class Limit:
    """What a key may hold beyond its type: ``Annotated[int, Limit(">= 1", test)]``."""

    allowed: str
    holds: Callable[[Any], bool]
    options: Collection[str] = ()


def at_least(minimum: float) -> Limit:
    """Values from ``minimum`` on."""
    return Limit(f">= {minimum}", lambda value: value >= minimum)


def one_of(options: Collection[str]) -> Limit:
    """One of some names that are listed elsewhere."""
    return Limit(f"one of {', '.join(options)}", lambda value: value in options, options)


NOT_EMPTY = Limit("not empty", len)

Natural = Annotated[int, at_least(0)]
Count = Annotated[int, at_least(1)]
NonNegative = Annotated[float, at_least(0)]
Positive = Annotated[float, Limit("> 0", lambda value: value > 0)]
Fraction = Annotated[float, Limit("from 0 to 1", lambda value: 0 <= value <= 1)]
Grid = Annotated[tuple[Positive, ...], NOT_EMPTY]


class Relation(NamedTuple):
    """A condition that ties several keys: whether it holds, the key to mend, what is allowed."""

    holds: bool
    key: str
    allowed: str


def check_relations(config: Any, relations: Iterable[Relation], where: str) -> None:
    """Raise :class:`UserError` at the first relation that does not hold, with the key's value."""
    for holds, key, allowed in relations:
        if not holds:
            value = plain(functools.reduce(getattr, key.split("."), config))
            raise UserError(f"{where}: {key} is {value!r}; allowed: {allowed}.")


# -------------------------------------------------------------------------------- dataclasses


def from_dict(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build dataclass ``cls``, nested ones too, from ``values`` read from ``where``.

    An unknown key, a missing one without a default, a value of the wrong type and one outside its
    :class:`Limit` each raise a :class:`UserError` naming the key, the value, what is allowed and
    the nearest valid key.
    """
    return _build(cls, values, where, "", cls)


def plain(value: Any) -> Any:
    """Tuples as lists, so that YAML and ``weights_only`` loading need no extra types."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def key_names(cls: type, prefix: str = "") -> list[str]:
    """Every key of a dataclass of sections, as ``section.key``."""
    names = []
    for name, hint in typing.get_type_hints(cls).items():
        nested_names = key_names(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else []
        names += nested_names or [prefix + name]
    return names


def nearest_keys(name: str, cls: type) -> list[str]:
    """The keys of ``cls``, as ``section.key``, meant by ``name``, with or without its section.

    The same name in other sections comes before a similar one in the same.
    """
    section, _, bare = name.rpartition(".")
    keys = [(full, *full.rpartition(".")[::2]) for full in key_names(cls)]
    same = [full for full, _, key in keys if key == bare]
    if same:
        return same
    beside = [(key, full) for full, place, key in keys if not section or place == section]
    close = difflib.get_close_matches(bare, dict(beside), n=1, cutoff=0.7)
    return [full for key, full in beside if close and key == close[0]]


def _build(cls: type[T], values: Mapping[str, Any], where: str, prefix: str, root: type) -> T:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in values.items():
        if key not in fields:
            raise _unknown_key(str(key), value, fields, where, prefix, root)
    arguments = {}
    for name, spec in fields.items():
        key, hint = prefix + name, hints[name]
        if name not in values:
            if spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
                raise UserError(f"{where}: key '{key}' is missing; expected {_describe(hint)}.")
        elif dataclasses.is_dataclass(hint):
            if not isinstance(values[name], Mapping):
                raise UserError(
                    f"{where}: '{key}' must be a section of keys, but it is {values[name]!r}."
                )
            arguments[name] = _build(hint, values[name], where, f"{key}.", root)
        else:
            try:
                arguments[name] = _convert(hint, values[name])
            except _NotAllowed as error:
                raise UserError(
                    f"{where}: {key} is {plain(values[name])!r}; allowed: {_describe(hint)}."
                    f"{nearest(str(error.value), error.options)}"
                ) from None
    return cls(**arguments)


def _unknown_key(
    key: str, value: Any, fields: Collection[str], where: str, prefix: str, root: type
) -> UserError:
    """A section is compared with sections and a key with keys: each may be in another place."""
    if isinstance(value, Mapping):
        kind, hint = "section", nearest(key, fields)
    else:
        near = " or ".join(f"'{name}'" for name in nearest_keys(prefix + key, root))
        kind, hint = "key", f" Did you mean {near}?" if near else ""
    return UserError(
        f"{where}: unknown {kind} '{prefix}{key}'.{hint} Valid here: {', '.join(fields)}."
    )


class _NotAllowed(Exception):
    """A value that its key cannot hold; ``options`` are names that may have been meant."""

    def __init__(self, value: Any, options: Collection[Any] = ()) -> None:
        super().__init__(value)
        self.value, self.options = value, [str(option) for option in options]


def _convert(hint: Any, value: Any) -> Any:
    """The value as its type hint says, or :class:`_NotAllowed`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        converted = _convert(args[0], value)
        for limit in args[1:]:
            if not limit.holds(converted):
                raise _NotAllowed(value, limit.options)
        return converted
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        *others, last = [a for a in args if a is not type(None)]
        for inner in others:
            with suppress(_NotAllowed):
                return _convert(inner, value)
        return _convert(last, value)
    if origin is Literal:
        if value not in args:
            raise _NotAllowed(value, args)
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _NotAllowed(value)
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise _NotAllowed(value)
        return tuple(_convert(h, v) for h, v in zip(inner, value, strict=True))
    if hint is float and not isinstance(value, bool):
        try:  # YAML 1.1 reads 1e-6, without a point, as text
            number = float(value)
        except (TypeError, ValueError):
            raise _NotAllowed(value) from None
        if not math.isfinite(number):
            raise _NotAllowed(value)
        return number
    if type(value) is not hint:
        raise _NotAllowed(value)
    return value


def _describe(hint: Any) -> str:
    """What a key may hold, in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        limits = ", ".join(limit.allowed for limit in args[1:])
        comma = "," if typing.get_origin(args[0]) is tuple else ""
        return limits if args[0] is str else f"{_describe(args[0])}{comma} {limits}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if a is type(None) else _describe(a) for a in args)
    if origin is Literal:
        return ", ".join(str(a) for a in args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"a list of {_describe(args[0])}"
        return "[" + ", ".join(_describe(a) for a in args) + "]"
    names = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
    return names.get(hint, str(hint))
