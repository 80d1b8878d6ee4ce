"""Do runs by the real programs, several beside each other, so that each can be gone on with."""

import json
import logging
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

from tqdm.contrib.logging import logging_redirect_tqdm

from scripts.ablation.runs import DONE, PRETRAINED, Run
from src.utils.files import write_text
from src.utils.progress import ProgressBar, progress_bar
from src.utils.signals import StopRequest, stop_requests

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_LOOK_SECONDS = 1.0  # between looks at signals and progress

logger = logging.getLogger(__name__)

State = Literal["done", "failed", "stopped", "busy"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and in words why, where it did not end well."""

    run: Run
    state: State
    why: str = ""


class Programs:
    """The programs under way, so that all of them can be stopped."""

    def __init__(self, threads: int) -> None:
        self._environment = os.environ | dict.fromkeys(_THREADS, str(threads))
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self.stopping = False

    def call(self, command: Sequence[str], log: Path, lock: int) -> int:
        """Run ``command``, its output appended to ``log``; return its exit code.

        It has a session of its own: a terminal's CTRL-C reaches the laboratory, which passes one
        signal on. It inherits ``lock``, the descriptor of the run's lock.
        """
        with log.open("ab") as file:
            file.write(f"$ {shlex.join(command)}\n".encode())
            file.flush()
            with self._lock:
                if self.stopping:
                    return -1
                program = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    start_new_session=True,
                    pass_fds=(lock,),
                )
                self._running.add(program)
        code = program.wait()
        with self._lock:
            self._running.discard(program)
        return code

    def stop(self) -> None:
        """Ask all of them to end: pretraining saves a checkpoint first."""
        with self._lock:
            self.stopping = True
            for program in self._running:
                program.terminate()

    def kill(self) -> None:
        """End all of them at once; what they saved stays."""
        with self._lock:
            self.stopping = True
            for program in self._running:
                program.kill()


def do_runs(runs: Sequence[Run], devices: Sequence[str], jobs: int) -> list[Outcome]:
    """Do what is left of ``runs``, ``jobs`` at a time, on ``devices`` in turn.

    One that fails is logged with the last line of its log, and the others go on. A stop signal
    stops the programs, which save.

    Raises:
        SystemExit: after a stop signal, with its exit code.
    """
    left = [run for run in runs if not run.is_done()]
    programs = Programs(max(1, len(os.sched_getaffinity(0)) // jobs))
    free: SimpleQueue[str] = SimpleQueue()
    for number in range(jobs):
        free.put(devices[number % len(devices)])
    logger.info("%d of %d runs are done, %d to do", len(runs) - len(left), len(runs), len(left))
    before = sum(run.steps_done for run in left)
    total = sum(run.total_steps for run in left)
    bar = progress_bar(total=total, initial=before, unit="step", desc="pretraining")
    with (
        stop_requests() as stop,
        logging_redirect_tqdm(),
        bar,
        ThreadPoolExecutor(jobs) as executor,
    ):
        waiting = {executor.submit(_do_run, run, free, programs) for run in left}
        try:
            outcomes = _collect(waiting, left, programs, stop, bar)
        except BaseException:
            programs.kill()
            raise
    if stop.is_set():
        raise SystemExit(stop.exit_code)
    return outcomes


def _collect(
    waiting: set[Future],
    runs: Sequence[Run],
    programs: Programs,
    stop: StopRequest,
    bar: ProgressBar,
) -> list[Outcome]:
    outcomes, shown = [], sum(run.steps_done for run in runs)
    while waiting:
        ended, waiting = wait(waiting, _LOOK_SECONDS, FIRST_COMPLETED)
        outcomes += [future.result() for future in ended]
        now = sum(run.steps_done for run in runs)
        bar.update(max(0, now - shown))
        shown = max(shown, now)
        if stop.is_set() and not programs.stopping:
            logger.info("%s: the programs save and end; start again to go on", stop)
            programs.stop()
    return outcomes


def _do_run(run: Run, free: SimpleQueue, programs: Programs) -> Outcome:
    """What is left of one run, on the next free device."""
    device = free.get()
    try:
        if programs.stopping:
            return Outcome(run, "stopped")
        with run.locked() as lock:
            if lock is None:
                outcome = Outcome(run, "busy", "another laboratory, or a program of one, is at it")
            else:
                outcome = _fill(run, device, programs, lock)
    finally:
        free.put(device)
    if outcome.state == "done":
        logger.info("%s: done", run.name)
    elif outcome.state != "stopped":
        logger.error("%s: %s: %s", run.name, outcome.state, outcome.why)
    return outcome


def _fill(run: Run, device: str, programs: Programs, lock: int) -> Outcome:
    log = run.path / "log.txt"
    if not (run.path / PRETRAINED).exists():
        before, start = run.steps_done, time.monotonic()
        code = programs.call(run.pretraining_command(device), log, lock)
        if code != 0:
            return _ended(run, "pretraining", code, programs, log)
        took = {"steps": run.total_steps - before, "seconds": time.monotonic() - start}
        write_text(run.path / PRETRAINED, json.dumps(took))
        logger.info("%s: pretrained in %.0f s; the evaluation begins", run.name, took["seconds"])
    for task in run.tasks_left():
        start = time.monotonic()
        run.task_done(task).parent.mkdir(parents=True, exist_ok=True)
        code = programs.call(run.evaluation_command(task, device), log, lock)
        if code != 0:
            return _ended(run, task.label, code, programs, log)
        took = {"seconds": time.monotonic() - start, "asked": run.asked(task)}
        write_text(run.task_done(task), json.dumps(took))
    run.tidy()
    write_text(run.path / DONE, "")
    return Outcome(run, "done")


def _ended(run: Run, what: str, code: int, programs: Programs, log: Path) -> Outcome:
    if programs.stopping:
        return Outcome(run, "stopped")
    return Outcome(run, "failed", f"{what} ended with {code}: {last_line(log)} (whole log: {log})")


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "the log is empty"
