"""Whole experiments by the real programs: to the end, stopped, gone on with, changed."""

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scripts.ablate import parse_arguments, run_experiment
from scripts.ablation.cost import status
from scripts.ablation.experiment import read_experiment
from scripts.ablation.laboratory import Laboratory
from scripts.ablation.pool import do_runs
from scripts.ablation.runs import ROOT
from src.utils.checkpoint import load_checkpoint
from src.utils.errors import UserError
from tests.scripts.ablation.conftest import PROGRAM, ablate

pytestmark = pytest.mark.processes


def steps_of(run: Path) -> list[int]:
    table = run / "pretrain" / "jepa_r0.csv"
    return [int(row["step"]) for row in csv.DictReader(table.open())] if table.exists() else []


def wait_until(holds, seconds=120):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


def test_an_experiment_is_run_scored_and_compared_and_then_is_done(
    write_experiment, people, tmp_path
):
    out, path = tmp_path / "out", write_experiment()
    ended = ablate(path, "--out", out, "--devices", "cpu", "cpu")
    assert ended.returncode == 0, ended.stderr
    assert "2 of 2 runs are done" in ended.stdout
    assert "mean over 3 people" in ended.stdout
    run = out / "runs" / "deep" / "seed0_fold0"
    assert steps_of(run) == list(range(1, 9))
    stored = load_checkpoint(run / "pretrain" / "jepa-latest.pth.tar")
    assert stored["config"]["meta"]["depth"] == 3
    assert stored["config"]["optimization"]["warmup"] == 0.25 * stored["epoch"]
    assert [p.name for p in (run / "pretrain").glob("*.pth.tar")] == ["jepa-latest.pth.tar"]

    table = pd.read_csv(out / "results.csv", dtype={"participant_id": str})
    runs = pd.read_csv(people / "participants.tsv", sep="\t", dtype={"participant_id": str})
    tested = set(runs.loc[runs["split"] == "test", "participant_id"])
    assert set(table["participant_id"]) == tested
    assert not set(stored["training_people"]) & tested
    model = table[(table["role"] == "model") & (table["metric"] == "squared_error")]
    predictions = pd.read_csv(run / "evaluation/age/ridge/predictions.tsv", sep="\t")
    by_hand = predictions[predictions["method"] == "Brain-JEPA"].set_index("participant_id")
    deep = model[model["arm"] == "deep"].set_index("participant_id")["value"]
    for person, value in deep.items():
        row = by_hand.loc[person]
        assert value == pytest.approx((row["predicted"] - row["target"]) ** 2, rel=1e-3)

    endpoints = pd.read_csv(out / "endpoints.csv")
    against_shallow = endpoints[endpoints["against"] == "arm shallow"]
    assert against_shallow["arm"].tolist() == ["deep"]
    shallow = model[model["arm"] == "shallow"].set_index("participant_id")["value"]
    assert against_shallow["mean"].item() == pytest.approx((shallow - deep).mean(), rel=1e-4)
    assert (out / "figure.png").stat().st_size > 10_000

    lab = Laboratory.of_folder(out)
    assert lab.report().strip() == ended.stdout.strip()
    assert "deep/seed0_fold0: done" in status(lab)
    before = (run / "log.txt").read_text()
    lab.lay_down()
    assert do_runs(lab.runs, ["cpu"], 1) == []
    assert (run / "log.txt").read_text() == before

    arms = {"shallow": None, "deep": {"meta.depth": 4}}
    changed = Laboratory.open(read_experiment(write_experiment(arms=arms)), out)
    with pytest.raises(UserError, match=r"meta.depth is 4, was 3\. Give the arm another name"):
        changed.lay_down()
    with pytest.raises(UserError, match="folds is 2, was 1"):
        Laboratory.open(read_experiment(write_experiment(folds=2)), out)
    task = {"task": str(tmp_path / "age.yaml"), "set": {"heads.folds": 3}}
    with pytest.raises(UserError, match=r"evaluated otherwise: heads.folds is 3, was 5"):
        Laboratory.open(read_experiment(write_experiment(evaluate=task)), out).lay_down()
    late = [{"task": "age", "metric": "absolute_error", "against": "untrained"}]
    later = Laboratory.open(read_experiment(write_experiment(endpoints=late)), out)
    later.lay_down()
    assert "declared after the first results: age model: absolute_error" in later.report()


def test_one_stopped_goes_on_and_a_failed_run_stops_no_other(write_experiment, tmp_path):
    arms = {"long": {"steps": 200}, "bad": {"optimization.lr": 1e30, "steps": 4}}
    path, out = write_experiment(arms=arms, endpoints=[]), tmp_path / "out"
    run = out / "runs" / "long" / "seed0_fold0"
    command = [*PROGRAM, str(path), "--out", str(out), "--devices", "cpu", "--jobs", "2"]
    lab = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(steps_of(run)) > 2)
    lab.send_signal(signal.SIGINT)
    said = lab.communicate(timeout=120)[1]
    assert lab.returncode == 130, said
    stopped_at = steps_of(run)[-1]
    assert stopped_at < 200
    assert not (run / "pretrained.json").exists()

    ended = ablate(path, "--out", out, "--devices", "cpu", "--jobs", "2")
    assert ended.returncode == 1
    assert "bad/seed0_fold0: failed: pretraining ended with 2: error:" in ended.stderr
    assert "1 of 2 runs are done" in ended.stdout
    assert "bad/seed0_fold0: step" in status(Laboratory.of_folder(out))
    assert "--resume" in (run / "log.txt").read_text()
    assert steps_of(run) == list(range(1, 201))
    assert json.loads((run / "pretrained.json").read_text())["steps"] == 200 - stopped_at


@pytest.mark.slow
def test_cross_fitting_scores_everyone_once_in_every_seed(write_experiment, people, tmp_path):
    path, out = write_experiment(seeds=[0, 1], folds=2), tmp_path / "out"
    ended = ablate(path, "--out", out, "--devices", "cpu", "--jobs", "2")
    assert ended.returncode == 0, ended.stderr
    table = pd.read_csv(out / "results.csv", dtype={"participant_id": str})
    own = table[(table["role"] == "model") & (table["metric"] == "squared_error")]
    everyone = set(pd.read_csv(people / "participants.tsv", sep="\t")["participant_id"])
    for _, rows in own.groupby(["arm", "seed"]):
        assert sorted(rows["participant_id"]) == sorted(everyone)
    for folder in (out / "runs").glob("*/*"):
        seen = set(load_checkpoint(folder / "pretrain/jepa-latest.pth.tar")["training_people"])
        fold = int(folder.name[-1])
        tested = set(own.loc[own["fold"] == fold, "participant_id"])
        assert not seen & tested
    endpoints = pd.read_csv(out / "endpoints.csv")
    wide = own.groupby(["arm", "participant_id"])["value"].mean().unstack("arm")
    row = endpoints[endpoints["against"] == "arm shallow"].iloc[0]
    difference = wide["shallow"] - wide["deep"]
    assert row["mean"] == pytest.approx(difference.mean(), rel=1e-4)
    assert (row["n"], row["gain"]) == (14, (difference > 0).sum())


@pytest.mark.slow
def test_what_a_killed_laboratory_left_running_is_not_run_twice(write_experiment, tmp_path):
    path, out = write_experiment(arms={"long": {"steps": 200}}, endpoints=[]), tmp_path / "out"
    run = out / "runs" / "long" / "seed0_fold0"
    command = [*PROGRAM, str(path), "--out", str(out), "--devices", "cpu"]
    lab = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(steps_of(run)) > 2)
    os.kill(lab.pid, signal.SIGKILL)
    lab.wait()
    ended = ablate(path, "--out", out, "--devices", "cpu")
    assert ended.returncode == 1
    assert "long/seed0_fold0: busy" in ended.stderr
    wait_until(lambda: "not running" in status(Laboratory.of_folder(out)), seconds=240)
    assert ablate(path, "--out", out, "--devices", "cpu").returncode == 0
    assert steps_of(run) == list(range(1, 201))


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(write_experiment, tmp_path, capsys):
    out = tmp_path / "out"
    path = str(write_experiment(seeds=[0, 1], folds=3))
    arguments = ["--out", str(out), "--devices", "cpu", "--dry-run", "steps=16", "--only", "deep/*"]
    assert run_experiment(parse_arguments([path, *arguments])) == 0
    said = capsys.readouterr().out
    assert "deep: meta.depth=3\n    6 runs left, 96 steps of about" in said
    assert "6 of 6 runs to do, 1 at a time; then of each: age" in said
    assert "people, fold 2: " in said
    assert not out.exists()


def test_steps_become_the_nearest_number_of_epochs(write_experiment, tmp_path):
    """Seven people are trained on: three steps of two clips an epoch."""
    arms = {"a": {"steps": 8}, "b": {"steps": 1}, "c": {"steps": 300}}
    path = write_experiment(arms=arms, endpoints=[])
    lab = Laboratory.open(read_experiment(path), tmp_path / "out")
    assert np.unique([run.config.data.batch_size for run in lab.runs]) == [2]
    epochs = {run.arm.name: run.config.optimization.epochs for run in lab.runs}
    per_epoch = {run.total_steps // epochs[run.arm.name] for run in lab.runs}
    assert len(per_epoch) == 1
    (each,) = per_epoch
    assert epochs == {"a": round(8 / each), "b": 1, "c": round(300 / each)}
