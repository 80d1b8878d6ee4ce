"""Devices, ranks and worker processes: the only module that knows about them."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from src.utils.errors import USER_ERROR_EXIT_CODE, UserError, report

# How long the others may take to end by themselves after one worker has died.
GRACE_SECONDS = 5
# The longest that one rank may keep the others waiting (it writes a checkpoint, measures, ...).
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


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

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process; touches the host only, never the device."""
        if self.host_group is None:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.host_group)
        return bool(value)

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every rank, in rank order, in every process."""
        if self.host_group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.host_group)
        return values

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through the block before the others: what it stores, they read."""
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
    are ended and the error is raised here; a :class:`UserError` in a worker ends the program with
    its exit code.
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
    context = mp.start_processes(_spawned, arguments, nprocs=len(devices), join=False)
    try:
        with _signals_forwarded_to(context.processes) as forwarded:
            while not context.join(grace_period=GRACE_SECONDS):
                pass
    except mp.ProcessExitedException as error:
        if error.exit_code == USER_ERROR_EXIT_CODE:  # the worker has said what is wrong
            raise SystemExit(USER_ERROR_EXIT_CODE) from None
        if forwarded.is_set() and error.signal_name in [s.name for s in STOP_SIGNALS]:
            raise SystemExit("stopped before the first step") from None
        raise
    finally:
        for process in context.processes:
            process.kill()


def _spawned(
    rank: int,
    worker: Callable[..., None],
    devices: list[torch.device],
    port: int,
    threads: int,
    args: tuple,
) -> None:
    # The workers of one machine share the threads that one process would use.
    if devices[rank].type == "cpu":
        torch.set_num_threads(max(1, threads // len(devices)))
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    _run_in_group(worker, devices[rank], args, store=store, rank=rank, world_size=len(devices))


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
    _run_in_group(worker, devices[local_rank], args)


def _run_in_group(
    worker: Callable[..., None], device: torch.device, args: tuple, **rendezvous: Any
) -> None:
    _select(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT, **rendezvous)
    host_group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
    ranks = Ranks(device, dist.get_rank(), dist.get_world_size(), host_group)
    try:
        worker(ranks, *args)
    except UserError as error:
        # Every rank may meet the same bad input; the first of them says so.
        if dist.distributed_c10d._get_default_store().add("user_errors", 1) == 1:
            report(error)
        raise SystemExit(USER_ERROR_EXIT_CODE) from None
    dist.destroy_process_group()


def _select(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)


@contextmanager
def _signals_forwarded_to(processes: Sequence[mp.Process]) -> Iterator[threading.Event]:
    """Pass a stop signal on to the workers: they decide together when to stop.

    A CTRL-C reaches them as SIGTERM, since a terminal sends them theirs as well, and a second
    SIGINT would interrupt them.
    """
    event = threading.Event()

    def forward(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and event.is_set():
            raise KeyboardInterrupt
        event.set()
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGTERM if number == signal.SIGINT else number)

    with _handling(forward):
        yield event


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that CTRL-C, SIGTERM and SIGUSR1 set: the run ends cleanly after its step.

    A second CTRL-C interrupts at once.
    """
    event = threading.Event()
    interrupted = threading.Event()

    def request(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if interrupted.is_set():
                raise KeyboardInterrupt
            interrupted.set()
        event.set()

    with _handling(request):
        yield event


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signal handlers can be set in the main thread only
        return
    previous = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
