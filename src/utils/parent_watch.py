"""Processes that end with the one that started them, even if that was killed by SIGKILL.

Without them, loaders and workers of a killed run stay, with their memory and their devices. A
thread watches the parent *process*; Linux's ``PR_SET_PDEATHSIG`` does not exist on macOS, and there
it is the parent *thread* whose end counts, and a parent that is gone already is not noticed.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait

POLL_SECONDS = 0.5


def end_with_parent(others: Sequence[Connection] = ()) -> None:
    """End this process, whatever it does, as soon as its parent process has ended.

    Also when one of the connections ``others`` becomes readable. A parent that is gone before this
    call counts as well, except while Python imports the main module of a spawned process: the
    parent is not set yet then, and :mod:`multiprocessing` fails by itself if it was gone before.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        target, arguments = _poll, (os.getppid(),)
    else:
        target, arguments = _wait, ([parent.sentinel, *others],)
    threading.Thread(target=target, args=arguments, name="parent watch", daemon=True).start()


def _wait(events: Sequence[int | Connection]) -> None:
    wait(events)
    os._exit(0)


def _poll(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(0)


def begin_program(name: str) -> None:
    """First call of a program's main module ``name``; importing the rest takes seconds.

    Meanwhile CTRL-C ends it without a traceback, and a worker ends with its parent.
    """
    if name == "__main__":
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if name == "__mp_main__" or "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
