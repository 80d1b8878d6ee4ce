"""Loader processes of a training: they leave signals to the trainer, and end when it does."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

from src.utils.distributed import STOP_SIGNALS


def leave_signals_to_the_trainer(worker_id: int) -> None:
    """``worker_init_fn`` of a DataLoader: a signal to the group of processes is not for loaders."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def batches_of(loader: DataLoader) -> Iterator[Iterator[Any]]:
    """The loader's batches; its processes end with the block, whatever ends it.

    For loaders with :func:`leave_signals_to_the_trainer`, without persistent workers, within
    :func:`src.utils.distributed.stop_requests`.
    """
    batches = iter(loader)
    try:
        yield batches
    finally:
        if loader.num_workers:
            # Left to Python's exit they are sent SIGTERM, which they ignore, and waited for.
            # PyTorch has no public way to end them.
            batches._shutdown_workers()
