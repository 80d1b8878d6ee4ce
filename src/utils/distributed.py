"""Devices, ranks and worker processes; no other module handles them."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist

from .errors import START_AGAIN, USER_ERROR_EXIT_CODE, UserError, as_user_error, report
from .parent_watch import end_with_parent
from .signals import (
    STOP_EXIT_CODES,
    STOP_SIGNALS,
    StopRequest,
    blocked,
    stop_forwarded_to,
    stop_requests,
)

# How workers are started: as new interpreters, since CUDA cannot be used in a forked one.
WORKERS = multiprocessing.get_context("spawn")
# How long the others may take to end by themselves after one worker has died.
GRACE_SECONDS = 5
# The longest that one rank may keep the others waiting (it writes a checkpoint, measures, ...).
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    Attributes:
        host_group: a gloo group for numbers that live on the host, ``None`` for one process.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    host_group: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        """Whether this is the process that logs and writes."""
        return self.rank == 0

    def max(self, number: int) -> int:
        """Largest ``number`` of all processes; touches the host only, never the device."""
        if self.host_group is None:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.host_group)
        return int(value)

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every rank, in rank order, in every process."""
        if self.host_group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.host_group)
        return values

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block in the main process first; the others then read what it has stored."""
        if not self.main:
            self.barrier()
        yield
        if self.main:
            self.barrier()

    def barrier(self) -> None:
        """Wait for the others."""
        if self.host_group is not None:
            dist.barrier(group=self.host_group)


def parse_devices(names: Sequence[str]) -> list[torch.device]:
    """Devices from ``cpu``, ``cuda:1``, ``mps``; :class:`UserError` if one is not there."""
    if not names:
        raise UserError("--devices names none; expected cpu, cuda:N or mps.")
    devices = []
    for name in names:
        try:
            device = torch.device(name)
        except RuntimeError:
            raise UserError(
                f"--devices {name}: not a device; expected cpu, cuda:N or mps."
            ) from None
        if device.type == "cuda":
            count = torch.cuda.device_count()
            device = torch.device("cuda", device.index or 0)
            if device.index >= count:
                have = (
                    f"there are {count}, cuda:0 to cuda:{count - 1}" if count else "there is none"
                )
                raise UserError(
                    f"--devices {name}: no such CUDA device; {have}. Try --devices cpu."
                )
        elif device.type == "mps":
            if not torch.backends.mps.is_available():
                raise UserError("--devices mps: not available on this machine. Try --devices cpu.")
        elif device.type != "cpu":
            raise UserError(f"--devices {name}: not supported; expected cpu, cuda:N or mps.")
        devices.append(device)
    if len({d.type for d in devices}) > 1:
        raise UserError(f"--devices {' '.join(names)}: all devices of a run must be of one kind.")
    if devices[0].type != "cpu" and len(set(devices)) < len(devices):
        raise UserError(f"--devices {' '.join(names)}: a device is named twice.")
    if devices[0].type == "mps" and len(devices) > 1:
        raise UserError("--devices: a run uses one mps device.")
    return devices


def default_devices() -> list[str]:
    """The best single device of this machine."""
    if torch.cuda.is_available():
        return ["cuda:0"]
    return ["mps"] if torch.backends.mps.is_available() else ["cpu"]


def is_first_process() -> bool:
    """Whether this process may report, for code outside of :func:`launch`.

    Only under ``torchrun`` are there others: there the whole program runs once per device.
    """
    return not _under_torchrun() or os.environ["RANK"] == "0"


def launch(worker: Callable[..., None], devices: Sequence[torch.device], *args: Any) -> None:
    """Run ``worker(ranks, *args)`` once per device and return when all have ended.

    One device runs in this process and needs no process group. Under ``torchrun`` this process is
    already one worker of many and takes its device by ``LOCAL_RANK``. If a worker dies the others
    are ended; a :class:`UserError` in a worker ends the program with its exit code. Stop signals
    are passed on to the workers, and if these end unfinished the exit code is that of the signal.

    Raises:
        SystemExit: if a worker failed, or was stopped before it was finished.
    """
    if _under_torchrun():
        _run_under_torchrun(worker, devices, args)
        return
    if len(devices) == 1:
        _select(devices[0])
        worker(Ranks(devices[0]), *args)
        return
    # The parent holds the store, on a port that the system picks: no fixed port, and no race.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = (worker, list(devices), store.port, torch.get_num_threads(), args)
    processes = [
        WORKERS.Process(target=_spawned, args=(rank, *arguments)) for rank in range(len(devices))
    ]
    with stop_forwarded_to(processes) as stop:
        try:
            # Begun with the first worker, Python's tracker would unblock what is blocked here.
            resource_tracker.ensure_running()
            with blocked([signal.SIGINT]):  # in the workers for good
                for process in processes:
                    process.start()
            if stop.is_set():  # while they were started: some have not got it
                for process in processes:
                    process.terminate()
            _join(processes, stop)
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()


def _join(processes: Sequence[BaseProcess], stop: StopRequest) -> None:
    """Return when all workers have finished; :class:`SystemExit` otherwise, at the first failure.

    Workers that were stopped are waited for: one of them may be writing a checkpoint.
    """
    running = list(processes)
    while running:
        ready = wait([process.sentinel for process in running])
        for process in [process for process in running if process.sentinel in ready]:
            process.join()
            running.remove(process)
            code = process.exitcode
            if -code in STOP_SIGNALS:  # it was importing: nothing had begun
                stop.set(-code)
                print(f"stopped by {stop} before the first step; {START_AGAIN}", file=sys.stderr)
                raise SystemExit(stop.exit_code)
            if code != 0 and code not in STOP_EXIT_CODES:
                deadline = time.monotonic() + GRACE_SECONDS
                for other in running:
                    other.join(max(0.0, deadline - time.monotonic()))
                raise SystemExit(_describe_failure([process.exitcode for process in processes]))
    if codes := [process.exitcode for process in processes if process.exitcode]:
        raise SystemExit(stop.exit_code or codes[0])


def _describe_failure(codes: Sequence[int | None]) -> int | str:
    """What to end with, given the workers' exit codes; ``None`` is one that has not ended."""
    if USER_ERROR_EXIT_CODE in codes:  # the worker has said what is wrong
        return USER_ERROR_EXIT_CODE
    # One that was killed is the cause of the others' failures.
    code = min(code for code in codes if code and code not in STOP_EXIT_CODES)
    how = f"ended with exit code {code}"
    if code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            how += ", as where memory runs out"
    return f"error: worker {codes.index(code)} of {len(codes)} {how}"


def _spawned(
    rank: int,
    worker: Callable[..., None],
    devices: list[torch.device],
    port: int,
    threads: int,
    args: tuple,
) -> None:
    end_with_parent()
    # The workers of one machine share the threads that one process would use.
    if devices[rank].type == "cpu":
        torch.set_num_threads(max(1, threads // len(devices)))
    # From here on a stop signal is noted, and looked at after the next step: a worker that ended
    # where it is would leave the others to fail in an exchange with it.
    with stop_requests():
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        _run_in_group(worker, devices[rank], args, store, rank, len(devices))


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _run_under_torchrun(
    worker: Callable[..., None], devices: Sequence[torch.device], args: tuple
) -> None:
    local_rank, local_world = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if len(devices) == 1 and devices[0].type == "cpu":
        devices = list(devices) * local_world
    if len(devices) != local_world:
        raise UserError(
            f"torchrun started {local_world} processes here, but --devices names {len(devices)}."
        )
    store, rank, world_size = next(dist.rendezvous("env://"))
    _run_in_group(worker, devices[local_rank], args, store, rank, world_size)


def _run_in_group(
    worker: Callable[..., None],
    device: torch.device,
    args: tuple,
    store: dist.Store,
    rank: int,
    world_size: int,
) -> None:
    _select(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        timeout=COLLECTIVE_TIMEOUT,
        store=dist.PrefixStore("collectives", store),
        rank=rank,
        world_size=world_size,
    )
    host_group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
    try:
        worker(Ranks(device, rank, world_size, host_group), *args)
    except Exception as error:
        # The first failure is reported. Those of other ranks are the same, or follow from it: a
        # connection that is closed.
        if store.add("failures", 1) > 1:
            raise SystemExit(1) from None
        if mistake := as_user_error(error):
            report(mistake)
            raise SystemExit(USER_ERROR_EXIT_CODE) from None
        raise
    except SystemExit:  # stopped by a signal, all ranks after the same step
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _select(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
