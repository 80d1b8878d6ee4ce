"""Loader processes that ignore stop signals and end together with the process they load for."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from torch.utils.data import DataLoader

from .parent_watch import end_with_parent
from .signals import STOP_SIGNALS, blocked, ignore_stop_signals


@contextmanager
def batches_of(loader: DataLoader) -> Iterator[Iterator[Any]]:
    """The loader's batches; its processes end with the block, whatever ends it.

    They ignore stop signals, which reach all processes of a run: the step under way, and those
    that other processes still have to take, need their batches. For loaders without persistent
    workers and without a ``worker_init_fn``, which is set here.
    """
    if not loader.num_workers:
        yield iter(loader)
        return
    end, ending = multiprocessing.Pipe(duplex=False)
    loader.worker_init_fn = partial(_begin_loading, end)
    with blocked(STOP_SIGNALS):  # until the processes ignore them by themselves
        batches = _Batches(iter(loader))
    try:
        yield batches
    finally:
        batches.close()
        # An exception that came out of the iterator keeps it. Then its processes, which ignore the
        # SIGTERM that Python sends at exit, are still there.
        ending.send_bytes(b"end")


class _Batches:
    """The only reference to a loader's iterator: without it, PyTorch ends the processes."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator: Iterator[Any] | None = iterator

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._iterator is None:
            raise RuntimeError("the batches of this loader are closed")
        return next(self._iterator)

    def close(self) -> None:
        self._iterator = None


def _begin_loading(end: Connection, worker_id: int) -> None:
    """``worker_init_fn`` of a DataLoader; ``end`` becomes readable when all shall end."""
    ignore_stop_signals()
    end_with_parent([end])
