"""Processes that end with their parent, and loader processes that end with their block."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from src.utils.loading import batches_of
from src.utils.signals import STOP_SIGNALS
from tests.conftest import fork_server

ROOT = Path(__file__).parents[2]
GONE_WITHIN = 4  # seconds; PyTorch's own watch of loader processes looks every 5

# A parent that starts a child by `how`; the child watches its parent, and waits much longer.
PARENT = """
import multiprocessing, os, subprocess, sys, time
from src.utils.parent_watch import begin_program, end_with_parent

def child():
    end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(60)

def late_child():
    os.kill(os.getppid(), 9)  # the parent is gone before its child looks
    time.sleep(1)
    print(os.getpid(), flush=True)
    end_with_parent()
    time.sleep(60)

if __name__ == "__main__":
    if sys.argv[1] == "torchrun":
        code = "from src.utils.parent_watch import begin_program; import os, time;"
        code += "begin_program('__main__'); print(os.getpid(), flush=True); time.sleep(60)"
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "TORCHELASTIC_RUN_ID": "1"})
    else:
        target = late_child if sys.argv[1] == "late" else child
        how = "fork" if sys.argv[1] == "late" else sys.argv[1]
        multiprocessing.get_context(how).Process(target=target).start()
        time.sleep(60)
"""


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver", "late", "torchrun"])
def test_a_child_ends_with_its_parent(tmp_path, how):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script), how],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    child = int(parent.stdout.readline())
    if how != "late":
        assert alive(child)
        parent.kill()
    parent.wait()
    deadline = time.monotonic() + GONE_WITHIN
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Numbers:
    """Ten items, of which one may not be read."""

    def __init__(self, bad: int | None = None) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        if index == self.bad:
            raise ValueError("this one cannot be read")
        return index


def loaders_left(before: set) -> set:
    deadline = time.monotonic() + GONE_WITHIN
    while left := set(multiprocessing.active_children()) - before:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.02)
    return set()


@pytest.mark.parametrize("read", [0, 3, 10])
def test_loaders_end_with_the_block(read):
    before = set(multiprocessing.active_children())
    with batches_of(DataLoader(Numbers(), 1, num_workers=2)) as batches:
        assert [int(next(batches)) for _ in range(read)] == list(range(read))
        loaders = set(multiprocessing.active_children()) - before
        assert len(loaders) == 2
    assert not loaders_left(before)
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)


def test_loaders_end_though_an_exception_keeps_their_iterator():
    """They ignore the SIGTERM by which Python would end them when the program exits."""
    before = set(multiprocessing.active_children())
    with (
        pytest.raises(ValueError, match="cannot be read") as kept,
        batches_of(DataLoader(Numbers(bad=2), 1, num_workers=2)) as batches,
    ):
        list(batches)
    assert kept.value.__traceback__ is not None  # its frames hold the iterator
    assert not loaders_left(before)


def test_stop_signals_are_not_for_loaders():
    before = set(multiprocessing.active_children())
    with batches_of(DataLoader(Numbers(), 1, num_workers=2)) as batches:
        for process in set(multiprocessing.active_children()) - before:
            for number in STOP_SIGNALS:  # at once, in whatever they are doing
                os.kill(process.pid, number)
        assert [int(batch) for batch in batches] == list(range(10))
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_stop_signals_are_not_for_loaders_of_a_fork_server():
    """They do not inherit what this process blocks, so they must ignore the signals themselves."""
    before = set(multiprocessing.active_children())
    loader = DataLoader(Numbers(), 1, num_workers=2, multiprocessing_context=fork_server())
    with batches_of(loader) as batches:
        assert [int(next(batches)) for _ in range(2)] == [0, 1]  # both have begun
        for process in set(multiprocessing.active_children()) - before:
            for number in STOP_SIGNALS:
                os.kill(process.pid, number)
        assert [int(batch) for batch in batches] == list(range(2, 10))
