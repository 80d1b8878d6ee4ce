"""Several processes through ``main.py``: same result as one, and no way to hang."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import main
from src import train
from src.utils.distributed import Ranks, is_first_process, launch, parse_devices
from src.utils.errors import UserError, run_main
from tests.conftest import (
    flat_weights,
    forked_workers,
    read_latest,
    tiny_config,
    tiny_values,
    train_here,
)

ROOT = Path(__file__).parents[2]
TIMEOUT = 240  # seconds; a hang is a failure
CPU = torch.device("cpu")
TWO = ("--devices", "cpu", "cpu")


def command(tmp_path: Path, data: Path, *arguments: str) -> list[str]:
    """``python main.py`` with the tiny config in a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_values(data, tmp_path / "run")))
    return ["main.py", "--fname", str(path), *arguments]


def run(arguments: list[str], *launcher: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *launcher, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.fixture(scope="module")
def one_process(data, tmp_path_factory) -> torch.Tensor:
    """What one process gives with the global batch that two processes of batch 2 have."""
    folder = tmp_path_factory.mktemp("one") / "run"
    config = tiny_config(data, folder, "data.batch_size=4", "meta.accumulation_steps=1")
    return flat_weights(train_here(config))


def test_two_processes_equal_one_with_the_same_global_batch(data, tmp_path, one_process):
    arguments = ("--devices", "cpu", "cpu", "meta.accumulation_steps=1", "data.num_workers=1")
    done = run(command(tmp_path, data, *arguments), "-W", "default")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr  # of PyTorch, about what this project calls
    state = read_latest(tmp_path / "run")
    assert state["world_size"] == 2
    # Adam divides by the gradient's size, so rounding shows up in weights whose gradient is zero.
    difference = (flat_weights(state) - one_process).abs()
    assert difference.mean() < 1e-6
    assert difference.max() < 2e-3


def test_two_processes_stopped_by_a_signal_and_resumed_are_bit_for_bit(data, tmp_path):
    long = ("optimization.epochs=20", "logging.monitor_every=1000")
    whole, stopped = tmp_path / "whole", tmp_path / "run"
    with forked_workers():
        launch(train.main, [CPU, CPU], tiny_config(data, whole, *long))

    process = subprocess.Popen(
        [sys.executable, "-W", "default", *command(tmp_path, data, *TWO, *long)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    latest = stopped / "jepa-latest.pth.tar"
    deadline = time.monotonic() + TIMEOUT
    while not latest.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Warning" not in errors  # with gradients that are accumulated, too
    middle = read_latest(stopped)["step"]
    assert 0 < middle < 20
    with forked_workers():
        launch(train.main, [CPU, CPU], tiny_config(data, stopped, *long), True)
    assert torch.equal(flat_weights(read_latest(stopped)), flat_weights(read_latest(whole)))


def test_a_worker_that_dies_ends_the_run(data, tmp_path):
    process = subprocess.Popen(
        [
            sys.executable,
            *command(tmp_path, data, "--devices", "cpu", "cpu", "optimization.epochs=100000"),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + TIMEOUT
    while not (tmp_path / "run" / "jepa-latest.pth.tar").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = children(process.pid)
    victims = [pid for pid in workers if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(victims) == 2
    os.kill(victims[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode not in (0, None)
    assert "SIGKILL" in errors or "Connection closed" in errors
    while any(alive(pid) for pid in workers):  # the last to go is Python's resource tracker
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Two workers that a signal meets before they look for any.
STOPPED_EARLY = """
import sys
import time
from pathlib import Path

import torch

from src.utils.distributed import launch
from src.utils.signals import stop_requests


def worker(ranks, folder):
    (folder / f"{ranks.rank} has begun").touch()
    time.sleep(1)
    with stop_requests() as stop:
        while not stop.is_set():
            time.sleep(0.01)
    (folder / f"{ranks.rank} knows").touch()
    raise SystemExit(stop.exit_code)


if __name__ == "__main__":
    launch(worker, [torch.device("cpu")] * 2, Path(sys.argv[1]))
"""


@pytest.mark.processes
def test_a_signal_before_training_has_begun_is_not_lost_and_ends_no_worker(tmp_path):
    (tmp_path / "program.py").write_text(STOPPED_EARLY)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + TIMEOUT
    while len(list(tmp_path.glob("* has begun"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert sorted(path.name for path in tmp_path.glob("* knows")) == ["0 knows", "1 knows"]


def alive(pid: int) -> bool:
    """Whether ``pid`` runs; an orphan that nobody has reaped does not."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def children(pid: int) -> list[int]:
    """Processes started by ``pid``."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def test_bad_input_in_the_workers_is_one_line_and_exit_code_2(data, tmp_path):
    done = run(command(tmp_path, data, "--devices", "cpu", "cpu", "data.crop_size=[26, 640]"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "too short" in done.stderr


def test_torchrun(data, tmp_path, one_process):
    done = run(
        command(tmp_path, data, "--devices", "cpu", "meta.accumulation_steps=1"),
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
    )
    assert done.returncode == 0, done.stderr
    state = read_latest(tmp_path / "run")
    assert state["world_size"] == 2
    assert (flat_weights(state) - one_process).abs().mean() < 1e-6


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cuda:77"], "no such CUDA device"),
        (["gpu"], "not a device"),
        (["cpu", "cuda:77"], "no such CUDA device"),
        (["meta"], "not supported"),
    ],
)
def test_devices_that_are_not_there(names, message):
    with pytest.raises(UserError, match=message):
        parse_devices(names)


def test_a_mistake_on_the_command_line_exits_with_2_and_no_traceback():
    done = run(["main.py", "--fname", "nowhere.yaml"])
    assert done.returncode == 2
    assert done.stderr.startswith("error: no config file nowhere.yaml")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--devices", "cpu", "meta.sed=1"), "unknown key 'meta.sed'. Did you mean 'meta.seed'?"),
        (("--devices", "cuda:77"), "no such CUDA device"),
    ],
)
def test_other_mistakes_on_the_command_line(
    data, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.setattr(sys, "argv", command(tmp_path, data, *arguments))
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's, which main.py has not
    with pytest.raises(SystemExit) as ended:
        run_main(main.main)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_only_torchrun_has_processes_that_may_not_report(monkeypatch):
    monkeypatch.setenv("RANK", "3")  # other launchers set this too
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert is_first_process()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert not is_first_process()
    monkeypatch.setenv("RANK", "0")
    assert is_first_process()


def report_mask(ranks: Ranks, folder: Path) -> None:
    """Worker of :func:`launch`: write whether SIGINT is blocked in it."""
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    (folder / str(ranks.rank)).write_text(str(blocked))


LAUNCH = """
from pathlib import Path
import torch
from src.utils.distributed import launch
from tests.utils.test_distributed import report_mask
if __name__ == "__main__":
    launch(report_mask, [torch.device("cpu")] * 2, Path({folder!r}))
"""


@pytest.mark.processes
def test_ctrl_c_of_a_terminal_is_blocked_in_every_worker(tmp_path):
    """In the first one too, with which Python starts a tracker that unblocks it."""
    script = tmp_path / "start.py"
    script.write_text(LAUNCH.format(folder=str(tmp_path)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, script], check=True, env=environment, timeout=TIMEOUT)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["True", "True"]
