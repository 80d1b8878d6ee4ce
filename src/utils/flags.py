"""Flags that a command line does not have: what was meant."""

import difflib
import shlex
from collections.abc import Sequence

from .errors import UserError
from .yaml_config import nearest_keys


def unknown_flag(
    argument: str, arguments: Sequence[str], flags: Sequence[str], config: type
) -> UserError:
    """Name the override that was meant, or the flag: a key's own name, a similar flag or key.

    Args:
        argument: the flag, with its value if that came after a ``=``.
        arguments: the command line.
        flags: those there are.
        config: dataclass of sections, whose keys are set by ``section.key=value``.
    """
    flag, equals, value = argument.partition("=")
    if not flag.startswith("-"):
        return UserError(f"'{argument}' is not an override; write section.key=value.")
    name = flag.lstrip("-")
    keys = nearest_keys(name, config)
    close = difflib.get_close_matches(flag, flags, n=1, cutoff=0.7)
    if keys and (keys[0].rpartition(".")[2] == name or not close):
        after = [*arguments[arguments.index(argument) + 1 :], "-"][0]
        if not equals:
            value = "VALUE" if after.startswith("-") else after
        overrides = " or ".join(shlex.quote(f"{key}={value}") for key in keys)
        return UserError(f"unknown flag {flag}; a key of the config is set by {overrides}.")
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return UserError(
        f"unknown flag {flag}.{hint} Flags: {', '.join(flags)}; keys of the config are set by "
        "section.key=value."
    )
