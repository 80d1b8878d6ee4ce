"""The README's first command, cut down: real data, gradients, a few steps, and what it prints."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

ROOT = Path(__file__).parents[2]
LEARNED = 0.1  # gain of held-out signal R2 over random weights
EPOCHS = 10
CUT_DOWN = (
    f"optimization.epochs={EPOCHS}",
    "optimization.warmup=1",
    "data.repeats=1",
    "meta.embed_dim=24",
    "meta.depth=1",
    "meta.pred_depth=1",
    "meta.pred_emb_dim=24",
    "logging.log_every=1",
    "logging.monitor_every=10",
    "logging.monitor_clips=8",
)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """The quickstart, ended by CTRL-C as soon as a step is logged."""
    run = tmp_path_factory.mktemp("quickstart") / "run"
    script = subprocess.Popen(
        ["bash", "scripts/quickstart.sh", "--devices", "cpu", *CUT_DOWN],
        cwd=ROOT,
        env={**os.environ, "VENV": sys.prefix, "RUN": str(run)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background job ignores CTRL-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    log, deadline = run / "log.txt", time.monotonic() + 300
    while not (log.exists() and " step 1/" in log.read_text()):
        assert script.poll() is None, script.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(script.pid, signal.SIGINT)
    out, err = script.communicate(timeout=120)
    return subprocess.CompletedProcess(script.args, script.returncode, out, err), run


@pytest.fixture(scope="module")
def quickstart(stopped) -> tuple[subprocess.CompletedProcess, Path]:
    """The same run to its end, by the command that the stopped one names."""
    _, command = stopped[0].stderr.splitlines()[-1].split("Go on with: ")
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=570,
        check=False,
    )
    return done, stopped[1]


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh"])
def test_help_is_printed_and_nothing_installed(shell, script, tmp_path):
    done = subprocess.run(
        [shell, f"scripts/{script}", "-v", "--help"],
        cwd=ROOT,
        env={**os.environ, "VENV": str(tmp_path / "venv"), "PYTHON": "false"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: bash scripts/{script}")
    assert "GB of disk" in done.stdout
    assert "CPU build" in done.stdout
    assert not list(tmp_path.iterdir())


def test_disk_and_the_cpu_build_are_said_before_anything_is_installed(tmp_path):
    done = subprocess.run(
        ["sh", "scripts/quickstart.sh"],
        cwd=ROOT,
        env={**os.environ, "VENV": str(tmp_path / "venv"), "PYTHON": "false"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: false is not Python 3.10 or newer")
    assert "GB of disk" in done.stdout
    assert "CPU build" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_stopped_pretraining_is_not_evaluated_and_says_how_to_go_on(stopped):
    done, run = stopped
    assert done.returncode == 128 + signal.SIGINT
    assert "== 3/4" in done.stdout
    assert "== 4/4" not in done.stdout
    assert not (run / "downstream").exists()
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Stopped before the end, so not evaluated. Go on with: ")
    assert f"RUN={run} bash scripts/quickstart.sh --resume --devices cpu " in last


def test_it_ends_well_and_says_where_everything_is(quickstart):
    done, run = quickstart
    assert done.returncode == 0, done.stderr
    assert str(run / "jepa-latest.pth.tar") in done.stdout
    assert "gradients.csv" in done.stdout
    for name in ("jepa-latest.pth.tar", "masks.png", "loss.png", "revision.txt", "jepa_r0.csv"):
        assert (run / name).stat().st_size > 0
    assert "R2" in done.stderr  # the learning monitors, and the verdict on them
    assert "learning: " in done.stdout.lower()


def test_it_ends_with_what_the_representation_knows_beside_the_baselines(quickstart):
    done, run = quickstart
    rows = {
        "demo_imputation/imputation": ("Untrained networks", "Ridge ", "Ridge + Brain-JEPA"),
        "demo_forecast/forecast": ("Untrained networks", "VAR ", "MLP (supervised)"),
        "demo_state/logistic": ("Untrained encoder", "FC "),
        "demo_fingerprint/fingerprint": ("Untrained encoder", "FC "),
    }
    places = []
    for task, baselines in rows.items():
        table = (run / "downstream" / task / "results.md").read_text()
        for row in ("Brain-JEPA ", *baselines):
            assert f"| {row}" in table
        places.append(done.stdout.index(table.splitlines()[4]))
    assert places == sorted(places)  # the signal itself comes first


def test_the_data_is_real_and_the_gradients_are_those_of_its_training_people(quickstart):
    people = pd.read_csv(ROOT / "data/demo_connattractor/participants.tsv", sep="\t")
    assert people["participant_id"].nunique() == 33
    assert len(people) == 98
    assert people.groupby("participant_id")["split"].nunique().max() == 1
    state = torch.load(quickstart[1] / "jepa-latest.pth.tar", weights_only=True)
    assert state["encoder"]["module.gradient_pos_embed"].shape == (1, 122, 30)
    assert len(state["roi_labels"]) == 122
    assert state["step"] == 6 * EPOCHS


@pytest.mark.slow
def test_the_whole_setting_is_what_the_readme_says_of_it(quickstart, tmp_path):
    """Minutes: the shipped config, uncut, on the data that the quickstart has fetched."""
    setting = ["--fname", "configs/quickstart.yaml", "--devices", "cpu"]
    done = subprocess.run(
        [sys.executable, "main.py", *setting, f"logging.folder={tmp_path / 'run'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / "run" / "jepa-latest.pth.tar", weights_only=True)
    first, last = state["monitors"]["first"], state["monitors"]["last"]
    for monitor in ("signal_r2", "forecast_r2"):
        assert last[monitor] > first[monitor] + LEARNED
    assert last["variance"] > 0.1 * first["variance"]
    assert "learning: " in (tmp_path / "run" / "log.txt").read_text().splitlines()[-1]
