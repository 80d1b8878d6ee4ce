"""`main.py` as a person types it: flags, what is proposed for wrong ones, and missing data."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import main
from src.config import load_config
from src.utils.distributed import default_devices
from src.utils.errors import UserError
from tests.conftest import tiny_config, train_here

ROOT = Path(__file__).parents[1]
DEBUG = "configs/debug.yaml"


def run(*command: str) -> subprocess.CompletedProcess:
    """A command in the checkout, with this interpreter in the place of python."""
    program = [sys.executable if word == "python" else word for word in command]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "3"], "unknown flag --epochs; a key of the config is set by "
                            "optimization.epochs=3"),
        (["--epochs=3"], "optimization.epochs=3"),
        (["--lr", "1e-3"], "optimization.lr=1e-3"),
        (["--batch-size", "4"], "data.batch_size=4"),
        (["--data.batch_size", "4"], "data.batch_size=4"),
        (["--epoch", "3"], "optimization.epochs=3"),
        (["--crop_size", "[32, 64]"], "'data.crop_size=[32, 64]'"),
        (["--compile", "--resume"], "meta.compile=VALUE"),
        (["--devces", "cpu"], "unknown flag --devces. Did you mean '--devices'?"),
        (["--xyz", "3"], "unknown flag --xyz. Flags: --fname, --devices, --resume;"),
        (["--devices", "cpu", "--warmup", "1"], "optimization.warmup=1"),
    ],
)  # fmt: skip
def test_an_unknown_flag_is_answered_with_what_sets_it(arguments, message):
    with pytest.raises(UserError) as error:
        main.parse_arguments(["--fname", DEBUG, *arguments])
    assert message in str(error.value)
    assert ("Did you mean" in str(error.value)) == ("Did you mean" in message)


def test_the_proposed_override_is_one(tmp_path):
    with pytest.raises(UserError) as error:
        main.parse_arguments(["--fname", DEBUG, "--crop_size", "[32, 32]"])
    override = shlex.split(str(error.value).split("set by ")[1].rstrip("."))[0]
    assert load_config(ROOT / DEBUG, [override]).data.crop_size == (32, 32)


def test_overrides_may_stand_anywhere():
    arguments = ["a.b=1", "--devices", "cpu", "c.d=2", "--fname", "x.yaml", "e.f=[1, 2]"]
    fname, devices, resume, overrides = main.parse_arguments(arguments)
    assert (fname, devices, resume) == ("x.yaml", ["cpu"], False)
    assert sorted(overrides) == ["a.b=1", "c.d=2", "e.f=[1, 2]"]
    assert main.parse_arguments(["--fname", "x.yaml"])[1] == default_devices()


@pytest.mark.processes
def test_missing_data_names_the_commands_that_make_it(tmp_path):
    """They are run as they are said, and then what was refused works."""
    data, folder = tmp_path / "the data", tmp_path / "run"
    overrides = [f"data.data_dir={data}", f"data.gradient_csv_path={data}/gradients.csv"]
    overrides += [f"logging.folder={folder}", "optimization.epochs=1"]
    command = ["python", "main.py", "--fname", DEBUG, "--devices", "cpu", *overrides]
    refused = run(*command)
    assert refused.returncode == 2
    (line,) = (line for line in refused.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: {data} does not exist. Make it with: python -m src.datasets.")
    commands = line.split("Make it with: ")[1].split(" && ")
    assert len(commands) == 2
    for text in commands:
        made = run(*shlex.split(text))
        assert made.returncode == 0, made.stderr
    trained = run(*command)
    assert trained.returncode == 0, trained.stderr
    assert (folder / "jepa-latest.pth.tar").exists()


@pytest.mark.parametrize("name", ["debug", "quickstart", "ukb_vitb_ep300"])
def test_shipped_configs_say_what_makes_their_data(name):
    data = load_config(ROOT / "configs" / f"{name}.yaml").data
    assert data.commands
    for command in data.commands:
        words = shlex.split(command)
        assert words[:2] == ["python", "-m"]
        assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file()
        assert data.data_dir in words


@pytest.mark.parametrize(("batch", "left_out"), [(2, 0), (5, 4)])
def test_the_log_counts_clips_and_steps_of_an_epoch_alike(data, tmp_path, batch, left_out):
    repeats, accumulation = 3, 2
    overrides = (f"data.repeats={repeats}", "optimization.epochs=1", "optimization.warmup=0")
    train_here(tiny_config(data, tmp_path, *overrides, f"data.batch_size={batch}"))
    text = (tmp_path / "log.txt").read_text()
    runs, of_each, clips = map(
        int, re.search(r"(\d+) training runs x (\d+) clips = (\d+) clips per epoch", text).groups()
    )
    steps = int(re.search(r"(\d+) steps per epoch", text)[1])
    assert (runs, of_each, clips) == (8, repeats, 24)
    assert steps == clips // (batch * accumulation)
    assert clips - steps * batch * accumulation == left_out
    assert (f"({left_out} of its clips fill no step)" in text) == bool(left_out)
    assert f"step {steps}/{steps}" in text
