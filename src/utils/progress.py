"""Progress on stderr: a bar on a terminal, and elsewhere a line every half minute."""

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

from tqdm import tqdm

EVERY_SECONDS = 30.0


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    desc: str = "",
    unit: str = "item",
    initial: int = 0,
    leave: bool = True,
    disable: bool = False,
) -> "ProgressBar":
    """Show how much is done of ``iterable``, or of ``total`` by calls of ``update``.

    Args:
        initial: how much was done before.
        leave: whether the bar of a terminal stays when all is done.
        disable: show nothing, as for all processes but the main one.
    """
    if disable or sys.stderr.isatty():
        return tqdm(iterable, desc, total, leave, unit=unit, initial=initial, disable=disable)
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    return ProgressLines(iterable, total, desc, unit, initial)


class ProgressLines:
    """The part of tqdm's interface that is used here, for log files and pipes.

    What ends within :data:`EVERY_SECONDS` writes nothing.
    """

    def __init__(
        self, iterable: Iterable[Any] | None, total: int | None, desc: str, unit: str, initial: int
    ) -> None:
        self.iterable, self.total, self.desc, self.unit = iterable, total, desc, unit
        self.initial = self.done = initial
        self._start = self._last = time.monotonic()
        self._shown_at: int | None = None
        self._postfix: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """Count ``n`` more as done."""
        self.done += n
        if time.monotonic() - self._last >= EVERY_SECONDS:
            self._show()

    def set_postfix(self, values: dict[str, Any] | None = None, **more: Any) -> None:
        """Values that the next line ends with."""
        more.pop("refresh", None)  # tqdm's: whether to show them at once
        self._postfix = {**(values or {}), **more}

    def close(self) -> None:
        """Show the final state, if an earlier one was shown."""
        if self._shown_at not in (None, self.done):
            self._show()

    def _show(self) -> None:
        self._last, self._shown_at = time.monotonic(), self.done
        elapsed = self._last - self._start
        parts = [f"{self.unit} {self.done}", f"{_clock(elapsed)} elapsed"]
        if self.total is not None:
            parts[0] += f" of {self.total}"
            if self.done - self.initial > 0 and self.done < self.total:
                pace = elapsed / (self.done - self.initial)
                parts.append(f"about {_clock(pace * (self.total - self.done))} left")
        for name, value in self._postfix.items():
            parts.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
        label = f"{self.desc}: " if self.desc else ""
        print(label + ", ".join(parts), file=sys.stderr, flush=True)


ProgressBar = tqdm | ProgressLines


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
