"""Disks that are full or read-only, as real file systems: one line, exit code 2, nothing torn."""

import importlib
import itertools
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import yaml

import downstream_eval
from src import train
from src.utils.distributed import Ranks
from src.utils.errors import as_user_error, run_main
from src.utils.logging import TensorBoard, setup_logging
from tests.conftest import make_data, read_latest, tiny_config, tiny_values
from tests.downstream_tasks.conftest import labelled_folder, write_checkpoint

pytestmark = [
    pytest.mark.root,
    # A program ends after a run that failed. Here TensorBoard's thread lives on, and after a while
    # writes to a folder that is gone.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

ROOT = Path(__file__).parents[1]
DISK = 16 << 20  # bytes
PAGE = 4096  # what a tmpfs counts in
TIMEOUT = 240  # seconds


class SmallDisk:
    """A file system in memory with room for :data:`DISK` bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        mount("-t", "tmpfs", "-o", f"size={DISK}", "small-disk", str(path))

    def leave(self, n_bytes: int) -> None:
        """Fill it up to ``n_bytes``."""
        ballast = self.path / "ballast"
        ballast.unlink(missing_ok=True)
        status = os.statvfs(self.path)
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - n_bytes)

    def read_only(self) -> None:
        """Let nothing be written any more; the rights of files do not stop root."""
        mount("-o", "remount,ro", str(self.path))


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A small file system, unmounted afterwards."""
    disk = SmallDisk(tmp_path / "disk")
    yield disk
    close_log()
    subprocess.run(["umount", "--lazy", str(disk.path)], check=True)


def close_log() -> None:
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if type(handler).__module__.startswith("src."):
            handler.close()
            root.removeHandler(handler)


# -------------------------------------------------------------------------------------- programs
def command(module: str) -> Callable[..., Callable[[], None]]:
    """The main function of a program that reads its arguments from ``sys.argv``."""

    def with_arguments(*arguments: object) -> Callable[[], None]:
        def main() -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", [module, *map(str, arguments)])
                return importlib.import_module(module).main()

        return main

    return with_arguments


def synthetic(inputs: Path, out: Path) -> Callable[[], None]:
    sizes = ("--n_people", 12, "--n_rois", 60, "--frames", 200, "--valid", 2, "--test", 2)
    return command("src.datasets.prepare.synthetic")("--out", out, *sizes)


def synthetic_cohort(inputs: Path, out: Path) -> Callable[[], None]:
    sizes = ("--n", 20, "--n_rois", 60, "--frames", 200)
    return command("scripts.make_synthetic_cohort")("adni", "--out", out, *sizes)


def gradients(inputs: Path, out: Path) -> Callable[[], None]:
    data = labelled_folder(inputs / "data", people=6, frames=60)
    options = ("--n_components", 3, "--out", out / "gradients.csv")
    return command("src.datasets.prepare.gradients")("--data_dir", data, *options)


def import_ukb(inputs: Path, out: Path) -> Callable[[], None]:
    labels = {
        "fMRI.Tian_Subcortex_S3_3T.csv.gz": ["HIP-rh", "AMY-rh"],
        "fMRI.Schaefer17n400p.csv.gz": [f"17Networks_LH_VisCent_{i}" for i in range(40)],
    }
    rng = np.random.default_rng(0)
    for person in range(20):
        folder = inputs / "time_series" / str(person)
        folder.mkdir(parents=True)
        for name, rows in labels.items():
            values = rng.normal(1000, 10, (len(rows), 100))
            pd.DataFrame(values, pd.Index(rows, name="label_name")).to_csv(folder / name)
    return command("src.datasets.prepare.ukb")("--root", inputs, "--out", out, "--workers", 1)


def import_hcpa(inputs: Path, out: Path) -> Callable[[], None]:
    for split in ("train", "valid", "test"):
        torch.save(list(torch.randn(8, 60, 100)), inputs / f"hca450_{split}_x.pt")
        torch.save([0, 1] * 4, inputs / f"hca450_{split}_y.pt")
    flags = ("--root", inputs, "--target", "sex", "--out", out)
    return command("src.datasets.prepare.hcpa")(*flags)


def import_arrow(inputs: Path, out: Path) -> Callable[[], None]:
    rng = np.random.default_rng(0)
    metadata = {"ARROW:extension:name": "datasets.features.features.Array2DExtensionType"}
    bold = pa.field("bold", pa.list_(pa.list_(pa.float32())), metadata=metadata)
    scalars = [("sub", pa.string()), ("run", pa.int32()), ("tr", pa.float32())]
    schema = pa.schema([*(pa.field(*scalar) for scalar in scalars), bold])
    root = inputs / "x.arrow"
    (root / "train").mkdir(parents=True)
    with pa.ipc.new_stream(str(root / "train" / "a.arrow"), schema) as writer:
        for person in range(20):
            series = rng.normal(size=(100, 60)).astype(np.float32).tolist()
            columns = ([f"p{person}"], [1], [0.8], [series])
            arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    return command("src.datasets.prepare.arrow")("--root", root, "--out", out)


def downstream(*arguments: object) -> Callable[[], None]:
    return lambda: downstream_eval.main([str(argument) for argument in arguments])


def embed(inputs: Path, out: Path, suffix: str, level: str) -> Callable[[], None]:
    data = labelled_folder(inputs / "data")
    checkpoint = write_checkpoint(inputs / "run" / "jepa-latest.pth.tar", data)
    flags = ("--data_path", data, "--level", level, "--device", "cpu")
    return downstream("embed", "--load_path", checkpoint, "--out", out / f"e{suffix}", *flags)


def embed_npz(inputs: Path, out: Path) -> Callable[[], None]:
    return embed(inputs, out, ".npz", "token")


def embed_parquet(inputs: Path, out: Path) -> Callable[[], None]:
    return embed(inputs, out, ".parquet", "roi")


def export(inputs: Path, out: Path) -> Callable[[], None]:
    data = labelled_folder(inputs / "data", people=6)
    checkpoint = write_checkpoint(inputs / "run" / "jepa-latest.pth.tar", data)
    return downstream("export", "--load_path", checkpoint, "--out", out / "model")


def evaluation(inputs: Path, out: Path, protocol: str) -> Callable[[], None]:
    data = labelled_folder(inputs / "data")
    checkpoint = write_checkpoint(inputs / "run" / "jepa-latest.pth.tar", data)
    task = inputs / "task.yaml"
    sections = {
        "name": "small",
        "data": {"data_path": str(data), "target": "sex", "num_workers": 0},
        "evaluation": {"num_seed": 1, "n_exchanges": 50, "baselines": ["majority", "fc"]},
        "fine_tune": {"epochs": 2, "batch_size": 4, "use_bfloat16": False},
        "linear_probe": {"epochs": 2},
        "heads": {"C": [0.01], "folds": 2},
    }
    task.write_text(yaml.safe_dump(sections))
    flags = ("--load_path", checkpoint, "--output_root", out, "--devices", "cpu")
    return downstream("--config", task, "--downstream_task", protocol, *flags)


def fine_tune(inputs: Path, out: Path) -> Callable[[], None]:
    return evaluation(inputs, out, "fine_tune")


def linear_probe(inputs: Path, out: Path) -> Callable[[], None]:
    return evaluation(inputs, out, "linear_probe")


def pretraining(inputs: Path, out: Path) -> Callable[[], None]:
    config = tiny_config(make_data(inputs / "data"), out, "logging.checkpoint_every=1")
    return lambda: train.main(Ranks(torch.device("cpu")), config)


PROGRAMS = (
    *(synthetic, synthetic_cohort, gradients, import_ukb, import_hcpa, import_arrow),
    *(embed_npz, embed_parquet, export, fine_tune, linear_probe, pretraining),
)


def ended(main: Callable[[], None], capsys: pytest.CaptureFixture) -> tuple[int, list[str]]:
    """Run a program; return its exit code and the lines on stderr that are errors."""
    logging.getLogger().handlers.clear()  # pytest's, which a program does not find
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run_main(main)
    close_log()
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert "Exception" not in errors
    return exit_.value.code or 0, [line for line in errors.splitlines() if "error" in line.lower()]


def room() -> Iterator[int]:
    """Bytes to leave: none, and then twice as many each time."""
    yield 0
    for power in itertools.count():
        yield PAGE << power


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_full_disk_is_one_line_from_every_program(program, disk, tmp_path, capsys):
    """It is full at another moment each time, until there is room for everything."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    out = disk.path / "out"
    main = program(inputs, out)
    codes = []
    for n_bytes in room():
        subprocess.run(["rm", "-rf", str(out)], check=True)
        disk.leave(n_bytes)
        code, errors = ended(main, capsys)
        codes.append(code)
        if code == 0:
            break
        assert code == 2, errors
        assert len(errors) == 1, errors
        assert "No space left on device" in errors[0]
        assert str(out) in errors[0]
        assert "Make room" in errors[0]
    assert codes[0] == 2


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_read_only_disk_is_one_line_from_every_program(program, disk, tmp_path, capsys):
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    main = program(inputs, disk.path / "out")
    disk.read_only()
    code, errors = ended(main, capsys)
    assert code == 2
    assert len(errors) == 1, errors
    assert "Read-only file system" in errors[0]
    assert str(disk.path) in errors[0]


# ------------------------------------------------------------------------------------ pretraining
def test_a_run_without_room_for_another_checkpoint_is_resumed_from_the_last(
    disk, tmp_path, capsys, monkeypatch
):
    """The disk fills up after the second epoch; nothing of the first two is lost."""
    config = tiny_config(make_data(tmp_path / "data"), disk.path / "run")
    real = train.train_step

    def train_step(step, *arguments):
        if step == 5:
            while read_latest(disk.path / "run")["step"] < 4:  # it is written beside the training
                time.sleep(0.02)
            disk.leave(2 * PAGE)
        return real(step, *arguments)

    monkeypatch.setattr(train, "train_step", train_step)
    code, errors = ended(lambda: train.main(Ranks(torch.device("cpu")), config), capsys)
    assert code == 2
    assert len(errors) == 1, errors
    assert "jepa-latest.pth.tar: No space left on device" in errors[0]
    assert read_latest(disk.path / "run")["step"] == 4
    assert not list((disk.path / "run").glob(".jepa*"))
    monkeypatch.undo()
    disk.leave(DISK // 2)
    code, errors = ended(lambda: train.main(Ranks(torch.device("cpu")), config, True), capsys)
    assert (code, errors) == (0, [])
    assert read_latest(disk.path / "run")["step"] == 6


@pytest.mark.processes
def test_two_processes_on_a_full_disk_end_in_one_line(disk, tmp_path):
    data = make_data(tmp_path / "data")
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_values(data, disk.path / "run")))
    disk.leave(48 * PAGE)  # enough for the beginning, not for a checkpoint
    done = subprocess.run(
        [sys.executable, "main.py", "--fname", str(config), "--devices", "cpu", "cpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "No space left on device" in errors[0]


def test_a_full_disk_under_tensorboard_reaches_the_caller_and_no_thread_shows_it(disk, capsys):
    """Its thread writes later: it may be the next call, or the last, that fails."""
    disk.leave(2 * PAGE)
    hook = threading.excepthook
    board = TensorBoard(disk.path / "board")

    def write() -> None:
        for step in range(10000):
            board.add_scalar("loss", 1.0, step)
        board.close()

    with pytest.raises(OSError, match="No space left on device") as failed:
        write()
    assert as_user_error(failed.value) is not None
    assert failed.value.filename == str(disk.path / "board")
    assert "Traceback" not in capsys.readouterr().err
    threading.excepthook = hook


def test_a_log_without_room_ends_the_program_and_does_not_hide_an_error(disk):
    setup_logging(disk.path / "run")
    disk.leave(0)
    with pytest.raises(OSError, match="No space left on device") as failed:
        logging.getLogger().info("a line")
    assert failed.value.filename == str(disk.path / "run" / "log.txt")
    setup_logging(disk.path / "run")
    logging.getLogger().error("what has ended the run")  # said on stderr, whatever the disk


def test_a_folder_that_ran_out_of_room_is_gone_on_with(disk, tmp_path, capsys):
    """An import on a full disk, started again when there is room, is that without a stop."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    disk.leave(20 * PAGE)
    code, errors = ended(import_ukb(inputs, disk.path / "out"), capsys)
    assert (code, len(errors)) == (2, 1)
    assert not (disk.path / "out" / "participants.tsv").exists()
    disk.leave(DISK // 2)
    again = command("src.datasets.prepare.ukb")
    flags = ("--root", inputs, "--workers", 1, "--out")
    assert ended(again(*flags, disk.path / "out"), capsys) == (0, [])
    assert ended(again(*flags, tmp_path / "whole"), capsys) == (0, [])
    for name in ("participants.tsv", "timeseries.npy"):
        assert (disk.path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
