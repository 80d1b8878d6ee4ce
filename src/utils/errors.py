"""Errors that a user can mend: one message, exit code 2, no traceback."""

import atexit
import difflib
import errno
import logging
import os
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from .signals import Interrupted, handling, ignore_stop_signals, interrupt

# Name of this package in the commands of messages: src in the checkout, brain_jepa once installed.
PACKAGE = __name__.partition(".")[0]
USER_ERROR_EXIT_CODE = 2

START_AGAIN = "start it again, with --resume where a checkpoint has been written"
# What users can do about a disk; other errors of the system are faults of the program.
_FULL = "What was there before is untouched. Make room there, or write elsewhere, and start again."
UNWRITABLE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: "Write elsewhere.",
    errno.EACCES: "Change the permissions, or name another place.",
    errno.EPERM: "Change the permissions, or name another place.",
}


class UserError(Exception):
    """Bad input. The message names the file, key or row, what was expected and what to do."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest option, or an empty string."""
    close = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a command-line program; a :class:`UserError` becomes one line and exit code 2.

    Stop signals end it in one line too, with exit code 128 + number of the signal.
    """
    try:
        with handling(interrupt):
            code = main()
        atexit.register(ignore_stop_signals)  # it has done its work
        sys.exit(code)
    except (UserError, OSError) as error:
        mistake = as_user_error(error)
        if mistake is None:
            raise
        if os.environ.get("LOCAL_RANK", "0") == "0":  # torchrun: every process meets the mistake
            report(mistake)
        sys.exit(USER_ERROR_EXIT_CODE)
    except Interrupted as stop:
        print(f"interrupted by {stop}; {START_AGAIN}", file=sys.stderr)
        sys.exit(stop.exit_code)


def as_user_error(error: BaseException) -> UserError | None:
    """The error itself, or what to tell the user of a disk that cannot be written; else ``None``.

    The file is named by :func:`src.utils.files.naming` where the system does not.
    """
    if isinstance(error, UserError):
        return error
    if not isinstance(error, OSError) or error.errno not in UNWRITABLE:
        return None
    name = f"{error.filename}: " if error.filename else ""
    return UserError(f"{name}{os.strerror(error.errno)}. {UNWRITABLE[error.errno]}")


def report(error: UserError) -> None:
    """Say what is wrong, as one line on stderr; in the run's log too, if there is one."""
    if logging.getLogger().handlers:
        logging.getLogger().error("%s", error)
    else:
        print(f"error: {error}", file=sys.stderr)
