"""What a run writes about itself: continued CSV and TensorBoard, its revision, its errors."""

import csv
import errno
import logging
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src import train
from src.utils import logging as run_logging
from src.utils.distributed import Ranks
from src.utils.errors import USER_ERROR_EXIT_CODE, UserError, run_main
from src.utils.logging import CSVLogger, RunLog, TensorBoard, git_revision, setup_logging
from src.utils.step_buffer import NonFiniteLoss, StepBuffer, StepRecord
from tests.conftest import overflowing, tiny_config, train_here

COLUMNS = ("step", "loss", "r2")
ALONE = Ranks(torch.device("cpu"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------- CSV
def filled(path: Path, steps: int = 4) -> Path:
    """A CSV of ``steps`` rows."""
    log = CSVLogger(path, COLUMNS)
    log.write([{"step": step, "loss": step / 8} for step in range(1, steps + 1)])
    log.close()
    return path


def test_rows_are_on_disk_as_soon_as_they_are_written(tmp_path):
    log = CSVLogger(tmp_path / "x.csv", COLUMNS)
    assert (tmp_path / "x.csv").read_text().split() == ["step,loss,r2"]
    log.write([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "r2": -1.0}])
    assert rows_of(tmp_path / "x.csv") == [
        {"step": "1", "loss": "0.5", "r2": ""},
        {"step": "2", "loss": "0.25", "r2": "-1.0"},
    ]
    log.close()


@pytest.mark.parametrize("torn", ["5", "5,0.6", "", "abc,", "5,0.62\x00", '5,"0.6'])
def test_a_torn_last_row_is_dropped_and_the_rest_goes_on(tmp_path, torn):
    path = filled(tmp_path / "x.csv")
    with path.open("a") as file:
        file.write(torn)
    log = CSVLogger(path, COLUMNS, resume_key="step", resume_at=5)
    log.write([{"step": 5, "loss": 1.0}])
    log.close()
    assert [row["step"] for row in rows_of(path)] == ["1", "2", "3", "4", "5"]
    assert rows_of(path)[-1]["loss"] == "1.0"


def test_a_torn_step_does_not_pass_for_an_earlier_one(tmp_path):
    columns = ("loss", "step", "lr", "r2")
    (tmp_path / "x.csv").write_text("loss,step,lr,r2\n0.9,11,0.1,\n0.8,1")  # of step 12
    CSVLogger(tmp_path / "x.csv", columns, resume_key="step", resume_at=12).close()
    assert [row["step"] for row in rows_of(tmp_path / "x.csv")] == ["11"]


@pytest.mark.parametrize("resume_at", [1, 3, 5])
def test_rows_after_the_checkpoint_are_dropped_and_those_before_are_untouched(tmp_path, resume_at):
    path = filled(tmp_path / "x.csv")
    before = rows_of(path)
    CSVLogger(path, COLUMNS, resume_key="step", resume_at=resume_at).close()
    assert rows_of(path) == before[: resume_at - 1]


def test_a_csv_with_other_columns_is_continued_in_ours(tmp_path):
    (tmp_path / "x.csv").write_text("loss,old,step\n0.5,9,1\n")
    CSVLogger(tmp_path / "x.csv", COLUMNS, resume_key="step", resume_at=2).close()
    assert rows_of(tmp_path / "x.csv") == [{"step": "1", "loss": "0.5", "r2": ""}]


# ---------------------------------------------------------------------------------------- RunLog
def test_a_continued_run_has_each_step_once_in_the_csv_and_in_tensorboard(tmp_path):
    """It went on to step 6, and is resumed from a checkpoint of step 3."""
    for first, last, value in ((1, 6, 1.0), (4, 8, 2.0)):
        # Files of TensorBoard are read in the order of their names, which begin with the second.
        time.sleep(1 - time.time() % 1)
        log = RunLog(tmp_path, "x.csv", COLUMNS, True, resume_key="step", resume_at=first)
        for step in range(first, last + 1):
            log.rows([{"step": step, "loss": value}])
            log.scalars({"train/loss": value}, step)
        log.close()
    assert [row["step"] for row in rows_of(tmp_path / "x.csv")] == [str(k) for k in range(1, 9)]
    expected = [(step, 1.0 if step < 4 else 2.0) for step in range(1, 9)]
    assert [float(row["loss"]) for row in rows_of(tmp_path / "x.csv")] == [v for _, v in expected]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == expected


def test_a_thread_tells_what_no_call_will_tell(tmp_path, monkeypatch):
    """TensorBoard writes in a thread; its full disk is an error of the next call as well."""
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: told.append(failure.exc_value))
    hook = threading.excepthook
    board = TensorBoard(tmp_path)
    full, mistake = OSError(errno.ENOSPC, "No space left on device"), ValueError("a mistake")
    for error in (full, mistake):
        thread = threading.Thread(target=raises, args=(error,))
        thread.start()
        thread.join()
    board.close()
    assert told == [mistake]
    assert threading.excepthook is hook


def raises(error: Exception) -> None:
    raise error


def test_other_processes_write_nothing(tmp_path):
    log = RunLog(tmp_path, "x.csv", COLUMNS, main=False)
    log.rows([{"step": 1}])
    log.scalars({"loss": 1.0}, 1)
    log.close()
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------- revision
@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A git checkout of one commit, which the project takes for its own."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("a = 1\n")
    git(tmp_path, "add", "code.py")
    who = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    git(tmp_path, *who, "-c", "commit.gpgsign=false", "commit", "--quiet", "-m", "first")
    monkeypatch.setattr(run_logging, "ROOT", tmp_path)
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_revision_says_whether_tracked_files_have_changed(checkout):
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "notes.txt").write_text("not tracked")
    assert git_revision() == commit
    (checkout / "code.py").write_text("a = 2\n")
    assert git_revision() == f"{commit}+changes"


def test_without_git_the_revision_is_unknown(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert git_revision() == "unknown (git is not installed)"
    monkeypatch.setattr(run_logging, "ROOT", tmp_path / "unpacked")
    assert git_revision() == "unknown (not a git checkout)"


def test_a_checkout_of_another_user_is_unknown_in_the_words_of_git(checkout, tmp_path, monkeypatch):
    """Containers often see the code as somebody else's; training must start all the same."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "git").write_text(
        "#!/bin/sh\necho \"fatal: detected dubious ownership\n\tin '/code'\" >&2\nexit 128\n"
    )
    (programs / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    assert git_revision() == "unknown (fatal: detected dubious ownership in '/code')"


# ---------------------------------------------------------------------------------------- log.txt
@pytest.mark.parametrize("below", ["file", "file/run"])
def test_a_run_folder_that_cannot_be_is_one_clear_error(data, tmp_path, below):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file.* cannot be written .*choose another folder"):
        train_here(tiny_config(data, tmp_path / below))
    assert (tmp_path / "file").read_text() == "in the way"


def test_an_error_is_in_the_log_with_its_time_and_on_the_terminal_without(tmp_path, capsys):
    def main() -> None:
        setup_logging(tmp_path)
        logging.getLogger("a.module").info("begun")
        raise UserError("the loss is not finite")

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == USER_ERROR_EXIT_CODE
    begun, error = capsys.readouterr().err.splitlines()
    assert begun.endswith("INFO    begun")
    assert error == "error: the loss is not finite"
    begun, error = (tmp_path / "log.txt").read_text().splitlines()
    assert error.endswith("ERROR   the loss is not finite")
    assert error[:4].isdecimal()


def test_the_log_of_a_resumed_run_is_continued_and_other_ranks_have_none(tmp_path):
    for word in ("first", "second"):
        setup_logging(tmp_path / "run")
        logging.getLogger().info(word)
    setup_logging(tmp_path / "other", main=False)
    assert not (tmp_path / "other").exists()
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["first", "second"]


# ------------------------------------------------------------------------------------ StepBuffer
def record(step: int, losses: list[float], grad_norm: float = 1.0) -> StepRecord:
    rows = [[10 * step + micro] for micro in range(len(losses))]
    values = [torch.tensor(loss) for loss in losses]
    return StepRecord(values, torch.tensor(grad_norm), rows, {"step": step})


def test_the_time_per_step_leaves_out_what_was_done_before_the_clock_was_restarted(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    buffer = StepBuffer()
    now[0] = 100.0  # such as measuring the monitors
    buffer.restart_clock()
    for step in (1, 2):
        buffer.add(record(step, [0.5]))
    now[0] = 100.5
    assert [row["time (ms)"] for row in buffer.flush(ALONE)] == [250.0, 250.0]
    buffer.add(record(3, [0.5]))
    now[0] = 100.6
    assert buffer.flush(ALONE)[0]["time (ms)"] == pytest.approx(100.0)  # counted from the flush
    assert buffer.flush(ALONE) == []


def test_the_loss_of_a_step_is_the_mean_of_its_micro_steps():
    buffer = StepBuffer()
    buffer.add(record(1, [0.25, 0.75], grad_norm=3.0))
    (row,) = buffer.flush(ALONE)
    assert (row["step"], row["loss"], row["grad_norm"]) == (1, 0.5, 3.0)


@pytest.mark.parametrize(
    ("bad", "what", "rows"),
    [
        (record(3, [0.5, float("nan")]), "loss", [31]),
        (record(3, [0.5, 0.5], float("inf")), "gradient", [30, 31]),
    ],
)
def test_numbers_that_are_not_finite_come_with_their_samples_and_the_rows_before(bad, what, rows):
    buffer = StepBuffer()
    for good in (record(1, [0.5, 0.5]), record(2, [0.25, 0.25])):
        buffer.add(good)
    buffer.add(bad)
    buffer.add(record(4, [float("nan")] * 2))  # the next ones are lost as well
    with pytest.raises(NonFiniteLoss, match=f"the {what} of optimizer step 3") as error:
        buffer.flush(ALONE)
    assert error.value.step == 3
    assert error.value.rows == rows
    assert [(row["step"], row["loss"]) for row in error.value.before] == [(1, 0.5), (2, 0.25)]


def test_the_rows_before_a_loss_that_is_not_finite_are_in_the_csv(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "train_step", overflowing(train.train_step, at_step=4))
    # One epoch of 4 steps, read once, at its end.
    config = tiny_config(
        data,
        tmp_path / "run",
        "meta.accumulation_steps=1",
        "logging.log_every=100",
        "logging.monitor_every=100",
    )
    with pytest.raises(UserError, match=r"optimizer step 4 .*There is no checkpoint yet"):
        train_here(config)
    rows = rows_of(tmp_path / "run" / "jepa_r0.csv")
    assert [int(row["step"]) for row in rows] == [1, 2, 3]
    assert all(0 < float(row["loss"]) < 2 for row in rows)
