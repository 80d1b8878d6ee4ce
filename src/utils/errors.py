"""Errors that a user can mend: one message, exit code 2, no traceback."""

import difflib
import logging
import os
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

USER_ERROR_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, as shells say it


class UserError(Exception):
    """Bad input. The message names the file, key or row, what was expected and what to do."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest option, or an empty string."""
    close = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a command-line program; a :class:`UserError` becomes one line and exit code 2."""
    try:
        sys.exit(main())
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # torchrun: every process meets the mistake
            report(error)
        sys.exit(USER_ERROR_EXIT_CODE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED_EXIT_CODE)


def report(error: UserError) -> None:
    """Say what is wrong, as one line on stderr; in the run's log too, if there is one."""
    if logging.getLogger().handlers:
        logging.getLogger().error("%s", error)
    else:
        print(f"error: {error}", file=sys.stderr)
