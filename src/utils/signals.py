"""Stop signals of a terminal or a scheduler: CTRL-C (SIGINT), SIGTERM and SIGUSR1.

A program that they end has the exit code that shells give: 128 + the number of the signal.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(KeyboardInterrupt):
    """A stop signal that ends the program at once."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = exit_code_of(number)


class StopRequest:
    """Whether a stop signal has come, and which: the first one counts.

    Attributes:
        exit_code: of a run that ends because of it; 0 as long as none has come.
    """

    def __init__(self) -> None:
        self.exit_code = 0

    def is_set(self) -> bool:
        """Whether one has come."""
        return self.exit_code != 0

    def __str__(self) -> str:
        return name_of(self.exit_code) if self.exit_code else "no signal"

    def set(self, number: int) -> None:
        """Note signal ``number``."""
        self.exit_code = self.exit_code or exit_code_of(number)


def exit_code_of(number: int) -> int:
    """Exit code of a program that signal ``number`` ended."""
    return 128 + number


def name_of(exit_code: int) -> str:
    """The signal, such as ``SIGTERM``, behind an exit code."""
    return signal.Signals(exit_code - 128).name


STOP_EXIT_CODES = tuple(exit_code_of(number) for number in STOP_SIGNALS)


def interrupt(number: int, frame: FrameType | None) -> None:
    """End what is under way: the signal handler of a program where nothing needs saving."""
    raise Interrupted(number)


_request: StopRequest | None = None  # that of this process, as signals are


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note stop signals instead of ending: the run looks at them after each step.

    A second CTRL-C interrupts at once; under ``torchrun``, which sends one of its own after that of
    the terminal, it does not. Within another such block, its request is continued: a signal that
    came before this block is not lost.
    """
    global _request
    if _request is not None:
        yield _request
        return
    request, interrupts = StopRequest(), 0
    patient = "TORCHELASTIC_RUN_ID" in os.environ

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1 and not patient:
            raise Interrupted(number)
        request.set(number)

    _request = request
    try:
        with handling(note):
            yield request
    finally:
        _request = None


@contextmanager
def stop_forwarded_to(processes: Sequence[BaseProcess]) -> Iterator[StopRequest]:
    """Pass stop signals on to worker processes: they decide together when to stop.

    A CTRL-C reaches them as SIGTERM: that of a terminal goes to all processes, and they have
    theirs blocked. A second CTRL-C interrupts this process.
    """
    request, interrupts = StopRequest(), 0

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            raise Interrupted(number)
        request.set(number)
        for process in processes:
            if process.is_alive():
                with suppress(ProcessLookupError):  # it has ended since
                    os.kill(process.pid, signal.SIGTERM if number == signal.SIGINT else number)

    with handling(forward):
        yield request


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the stop signals by ``handler``; nothing happens outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets signal handlers in the main thread only
        return
    previous = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


@contextmanager
def blocked(signals: Sequence[int]) -> Iterator[None]:
    """Block ``signals``; processes started inside the block inherit that and never get them."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def ignore_stop_signals() -> None:
    """Ignore stop signals from here to the end of the process."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
