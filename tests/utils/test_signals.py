"""Stopping ``main.py`` from outside, as terminals and schedulers do: no lost step, no debris."""

import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import yaml

from src import run_report, train
from tests.conftest import (
    flat_weights,
    fork_server,
    read_latest,
    tiny_config,
    tiny_values,
    train_here,
    train_until_stopped,
)

ROOT = Path(__file__).parents[2]
TIMEOUT = 120  # seconds; a hang is a failure
LONG = ("optimization.epochs=5000", "logging.monitor_every=100000")
LATEST = "jepa-latest.pth.tar"


def main_py(arguments: list[str], errors: Path, slow_step: bool) -> None:
    """``python main.py arguments``, leading a group of processes of its own."""
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # Python's own, as in a new interpreter
    with errors.open("wb") as file:
        os.dup2(file.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    if slow_step:
        train.train_step = slowed(train.train_step, errors.with_name("in a step"))
    sys.argv = ["main.py", *arguments]
    runpy.run_path(str(ROOT / "main.py"), run_name="__main__")


def slowed(train_step: Callable, marker: Path) -> Callable:
    """A step that says that it has begun, and then takes as long as the test."""

    def slow(*args, **kwargs):
        marker.touch()
        time.sleep(TIMEOUT)
        return train_step(*args, **kwargs)

    return slow


def running(group: int) -> list[int]:
    """Processes of a group that still run; an orphan that nobody has reaped does not."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = status.read_text().rpartition(") ")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended since it was listed
        if int(its_group) == group and state != "Z":
            found.append(int(status.parent.name))
    return found


class Program:
    """A running ``main.py`` with the tiny config, and what becomes of it."""

    def __init__(self, folder: Path, data: Path, *arguments: str, slow_step: bool = False) -> None:
        self.run, self.marker = folder / "run", folder / "in a step"
        self._errors = folder / "stderr.txt"
        config = folder / "tiny.yaml"
        config.write_text(yaml.safe_dump(tiny_values(data, self.run)))
        self.process: BaseProcess = fork_server().Process(
            target=main_py,
            args=(["--fname", str(config), *arguments], self._errors, slow_step),
        )
        self.process.start()

    def wait_for(self, what: Path | Callable[[], bool]) -> None:
        """Wait for a file, or until something holds."""
        holds = what.exists if isinstance(what, Path) else what
        deadline = time.monotonic() + TIMEOUT
        while not holds():
            assert self.process.exitcode is None, self.errors()
            assert time.monotonic() < deadline, self.errors()
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        """Send a signal to this process alone."""
        os.kill(self.process.pid, number)

    def signal_group(self, number: int) -> None:
        """Send a signal to it and all that it has started, as a terminal does."""
        os.killpg(self.process.pid, number)

    def exit_code(self) -> int:
        """Wait until neither it nor anything that it started is left."""
        self.process.join(TIMEOUT)
        assert self.process.exitcode is not None, self.errors()
        deadline = time.monotonic() + TIMEOUT
        while left := self.group():
            assert time.monotonic() < deadline, left
            time.sleep(0.02)
        return self.process.exitcode

    def group(self) -> list[int]:
        """Its processes that still run."""
        return running(self.process.pid)

    def errors(self) -> str:
        """All that it wrote to stderr."""
        return self._errors.read_text()

    def kill(self) -> None:
        """End what a failed test has left."""
        for pid in self.group():
            os.kill(pid, signal.SIGKILL)
        self.process.join()


@pytest.fixture
def start(tmp_path, data) -> Iterator[Callable[..., Program]]:
    """A function that starts ``main.py`` with further arguments."""
    programs = []

    def start_program(*arguments: str, **options: bool) -> Program:
        programs.append(Program(tmp_path, data, *arguments, **options))
        return programs[-1]

    yield start_program
    for program in programs:
        program.kill()


def steps_before_the_stop(program: Program, number: int) -> int:
    """The step of the checkpoint of a run that signal ``number`` asked to stop, and did."""
    assert program.exit_code() == 128 + number, program.errors()
    errors = program.errors()
    assert "Traceback" not in errors
    assert "error" not in errors.lower()
    step = read_latest(program.run)["step"]
    # Workers get a CTRL-C as SIGTERM.
    assert re.search(rf"stopped by SIG\w+ after step {step}; go on with --resume", errors)
    rows = (program.run / "jepa_r0.csv").read_text().splitlines()
    assert len(rows) == 1 + step
    return step


def resumes(config_overrides: tuple[str, ...], program: Program, data: Path, step: int) -> None:
    """Resume for as long as it takes to see that it goes on from ``step``."""
    real = train.train_step
    taken = []

    def train_step(current, *args, **kwargs):
        taken.append(current)
        os.kill(os.getpid(), signal.SIGTERM)
        return real(current, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train_step", train_step)
        config = tiny_config(data, program.run, *config_overrides)
        state = train_until_stopped(config, signal.SIGTERM, resume=True)
    assert taken == [step + 1]
    assert state["step"] == step + 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_the_group_ends_one_process_and_its_loaders_cleanly(start, data, number):
    program = start("--devices", "cpu", "data.num_workers=2", *LONG)
    program.wait_for(program.run / LATEST)
    assert len(program.group()) == 3  # it and its loaders
    program.signal_group(number)
    resumes(LONG, program, data, steps_before_the_stop(program, number))


def test_a_stopped_run_is_that_of_one_process_up_to_there(start, data, tmp_path):
    """Stopped by CTRL-C and resumed by the same command, bit for bit."""
    run = ("--devices", "cpu", "optimization.epochs=20", "logging.monitor_every=1000")
    program = start(*run)
    program.wait_for(program.run / LATEST)
    program.signal(signal.SIGINT)
    assert 0 < steps_before_the_stop(program, signal.SIGINT) < 40
    again = start(*run, "--resume")
    assert again.exit_code() == 0, again.errors()
    whole = train_here(tiny_config(data, tmp_path / "whole", *run[2:]))
    assert torch.equal(flat_weights(read_latest(program.run)), flat_weights(whole))


def test_ctrl_c_ends_two_processes_cleanly(start, data):
    program = start("--devices", "cpu", "cpu", *LONG)
    program.wait_for(program.run / LATEST)
    program.signal_group(signal.SIGINT)
    step = steps_before_the_stop(program, signal.SIGINT)
    overrides = (*LONG, "data.batch_size=4")  # one process now
    resumes(overrides, program, data, step)


def test_a_signal_after_the_last_step_ends_nothing(data, tmp_path, monkeypatch):
    """It comes while the curves are drawn: the run is finished, which is exit code 0."""
    real = run_report.draw_curves

    def draw_curves(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        real(*args, **options)

    monkeypatch.setattr(run_report, "draw_curves", draw_curves)
    assert train_here(tiny_config(data, tmp_path / "run"))["epoch"] == 3
    assert (tmp_path / "run" / "loss.png").exists()


def test_a_second_ctrl_c_interrupts_a_step_that_takes_too_long(start):
    program = start("--devices", "cpu", "data.num_workers=2", *LONG, slow_step=True)
    program.wait_for(program.marker)
    program.signal_group(signal.SIGINT)
    time.sleep(0.3)
    assert program.process.exitcode is None  # the step goes on
    program.signal_group(signal.SIGINT)
    assert program.exit_code() == 130
    lines = [line for line in program.errors().splitlines() if "INFO" not in line]
    assert lines[-1].startswith("interrupted by SIGINT; start it again, with --resume")
    assert "Traceback" not in program.errors()
    assert not (program.run / LATEST).exists()


def test_ctrl_c_before_the_first_step_is_one_line(start):
    """While the data are read and the first monitors taken, nothing is there to be saved."""
    program = start("--devices", "cpu", "data.num_workers=2", *LONG, "logging.monitor_clips=100000")
    program.wait_for(program.run / "log.txt")
    program.signal_group(signal.SIGINT)
    assert program.exit_code() == 130
    assert program.errors().splitlines()[-1].startswith("interrupted by SIGINT; start it again")
    assert "Traceback" not in program.errors()


@pytest.mark.parametrize("whole_group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_while_the_workers_are_being_started(start, number, whole_group):
    program = start("--devices", "cpu", "cpu", *LONG)
    program.wait_for(lambda: len(program.group()) == 3)  # it and its workers
    time.sleep(0.3)  # they import for seconds
    (program.signal_group if whole_group else program.signal)(number)
    assert program.exit_code() == 128 + number
    said = program.errors().strip()
    assert said.startswith(f"stopped by {number.name} before the first step; start it again")
    assert len(said.splitlines()) == 1
    assert not (program.run / LATEST).exists()


# A launcher killed by SIGKILL cannot end anything: those that it started notice by themselves.
GONE_WITHIN = 30  # seconds; 10 where the cores are not shared with other tests


def gone_after_sigkill(program: Program) -> None:
    """Kill the launcher alone; all that it started must have ended soon."""
    assert len(program.group()) > 1
    program.signal(signal.SIGKILL)
    nothing_left(program.process.pid)


def nothing_left(group: int) -> None:
    """Wait for the end of all processes of a group."""
    deadline = time.monotonic() + GONE_WITHIN
    while left := running(group):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.mark.processes
@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_sigkill_while_the_workers_import(start, seconds):
    program = start("--devices", "cpu", "cpu", *LONG)
    program.wait_for(lambda: len(program.group()) >= 2)  # the first of them, or both
    time.sleep(seconds)
    assert not (program.run / "log.txt").exists()
    gone_after_sigkill(program)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "processes"),
    [
        (("--devices", "cpu", "data.num_workers=3"), 4),
        (("--devices", "cpu", "cpu"), 3),
        (("--devices", "cpu", "cpu", "data.num_workers=2"), 7),
    ],
)
def test_sigkill_while_it_trains(start, arguments, processes):
    program = start(*arguments, *LONG)
    program.wait_for(program.run / LATEST)
    program.wait_for(lambda: len(program.group()) >= processes)
    gone_after_sigkill(program)


@pytest.mark.processes
def test_sigkill_in_a_step_that_takes_long(start):
    """The loaders are idle then: their queues are full."""
    program = start("--devices", "cpu", "data.num_workers=2", *LONG, slow_step=True)
    program.wait_for(program.marker)
    gone_after_sigkill(program)


@pytest.mark.processes
@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "cpu")])
def test_sigkill_while_a_checkpoint_is_written(start, devices):
    program = start("--devices", *devices, "data.num_workers=1", *LONG)
    program.wait_for(program.run / LATEST)
    deadline = time.monotonic() + TIMEOUT
    while not any(program.run.glob(f".{LATEST}.*")):
        assert time.monotonic() < deadline
    gone_after_sigkill(program)
    assert read_latest(program.run)["step"] > 0


def test_a_failure_in_two_processes_leaves_no_loader_to_wait_for(start):
    """Loaders ignore SIGTERM, which is how Python ends them when a spawned process exits."""
    huge = ("optimization.lr=1e30", "optimization.start_lr=1e30")
    program = start("--devices", "cpu", "cpu", "data.num_workers=1", *LONG, *huge)
    assert program.exit_code() == 2
    assert program.errors().count("error: ") == 1
    assert "is not finite" in program.errors()
    assert "Traceback" not in program.errors()


# After the start of `python`: its imports, those of the workers, data, first step, training.
MOMENTS = (0.3, 0.8, 1.5, 2.5, 3.5, 5.0, 6.5, 8.0, 10.0, 13.0)  # seconds


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("seconds", MOMENTS)
def test_ctrl_c_in_a_terminal_at_any_moment(data, tmp_path, seconds):
    """As a person presses it, in a run of two devices started as the README says."""
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_values(data, tmp_path / "run")))
    devices = ("--devices", "cpu", "cpu", "data.num_workers=1")
    program = subprocess.Popen(
        [sys.executable, "main.py", "--fname", str(config), *devices, *LONG],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(seconds)
    os.killpg(program.pid, signal.SIGINT)
    _, errors = program.communicate(timeout=TIMEOUT)  # when none has stderr open any more
    assert "Traceback" not in errors
    # Python's death by SIGINT is 130 to a shell; while it imports there is nothing to be told.
    assert program.returncode in (130, -signal.SIGINT), errors
    assert (program.returncode == 130) == bool(errors)
    nothing_left(program.pid)
    latest = tmp_path / "run" / LATEST
    if "after step" in errors:
        assert f"after step {read_latest(latest.parent)['step']};" in errors
    else:
        assert not latest.exists()
