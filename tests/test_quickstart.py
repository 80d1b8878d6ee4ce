"""The README's first command, cut down: real data, gradients, a few steps, and what it prints."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

ROOT = Path(__file__).parents[1]
LEARNED = 0.05  # held-out R2 that is clearly above 0
CUT_DOWN = (
    "optimization.epochs=2",
    "optimization.warmup=1",
    "data.repeats=1",
    "meta.embed_dim=24",
    "meta.depth=1",
    "meta.pred_depth=1",
    "meta.pred_emb_dim=24",
    "logging.monitor_every=10",
    "logging.monitor_clips=8",
)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    run = tmp_path_factory.mktemp("quickstart") / "run"
    done = subprocess.run(
        ["bash", "scripts/quickstart.sh", "--devices", "cpu", *CUT_DOWN],
        cwd=ROOT,
        env={**os.environ, "VENV": sys.prefix, "RUN": str(run)},
        capture_output=True,
        text=True,
        timeout=570,
        check=False,
    )
    return done, run


def test_it_ends_well_and_says_where_everything_is(quickstart):
    done, run = quickstart
    assert done.returncode == 0, done.stderr
    assert str(run / "jepa-latest.pth.tar") in done.stdout
    assert "gradients.csv" in done.stdout
    for name in ("jepa-latest.pth.tar", "masks.png", "loss.png", "revision.txt", "jepa_r0.csv"):
        assert (run / name).stat().st_size > 0
    assert "R2" in done.stderr  # the learning monitors, and the verdict on them
    assert "learning: held-out" in done.stdout.lower()


def test_it_ends_with_what_the_representation_knows_beside_the_baselines(quickstart):
    done, run = quickstart
    for task in ("demo_state/logistic", "demo_fingerprint/fingerprint"):
        table = (run / "downstream" / task / "results.md").read_text()
        for row in ("Brain-JEPA ", "Untrained encoder", "FC "):
            assert f"| {row}" in table
        assert table.splitlines()[4] in done.stdout


def test_the_data_is_real_and_the_gradients_are_those_of_its_training_people(quickstart):
    people = pd.read_csv(ROOT / "data/demo_connattractor/participants.tsv", sep="\t")
    assert people["participant_id"].nunique() == 33
    assert len(people) == 98
    assert people.groupby("participant_id")["split"].nunique().max() == 1
    state = torch.load(quickstart[1] / "jepa-latest.pth.tar", weights_only=True)
    assert state["encoder"]["module.gradient_pos_embed"].shape == (1, 122, 30)
    assert len(state["roi_labels"]) == 122
    assert state["step"] == 12


@pytest.mark.slow
def test_the_whole_setting_learns_about_the_signal(quickstart, tmp_path):
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
    assert last["r2"] > LEARNED
    assert last["variance"] > 0.1 * first["variance"]
