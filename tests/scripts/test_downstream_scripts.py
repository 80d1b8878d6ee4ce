"""The one-command scripts of the downstream tasks, rehearsed on cohorts of synthetic people.

Runs are as long, and their frames as far apart, as those of the real cohorts; people, ROIs, epochs
and the model are fewer and smaller. `-m slow` runs every script, else one of each kind is run.
"""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from downstream_tasks.task_files import load_task, task_names
from src.datasets.clip_input import DOWNSAMPLE_STRIDE
from src.datasets.clips import frames_needed
from src.datasets.prepare.synthetic import write_synthetic
from tests.conftest import tiny_config, train_here

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from make_synthetic_cohort import (  # noqa: E402  (a script, not part of a package)
    PRESETS,
    make_cohort,
)

PEOPLE, ROIS, FRAMES = 40, 32, 160
# Of the paper and its release; the demo tasks, and those of an experiment, have no script.
TASKS = [n for n in task_names() if not n.startswith(("demo_", "known_truth"))]
SCRIPTS = [f"{protocol}_{task}" for protocol in ("FT", "LP") for task in TASKS]
FEW = ("FT_hca_sex", "LP_adni_ncmci", "FT_hca_age", "LP_ukb_age")
KINDS = {"classification": "Majority class", "regression": "Mean of the training people"}
PROTOCOLS = {"FT": ("fine_tune", "fine-tuned"), "LP": ("linear_probe", "published LARS probe")}


def script_of(name: str) -> Path:
    """``FT_hca_sex`` -> its script."""
    kind = load_task(name[3:]).data.type
    return ROOT / "scripts" / kind / f"run_downstream_{name}.sh"


def cohort_of(task: str) -> str:
    """``hca_sex`` -> ``hca``, a preset of make_synthetic_cohort.py."""
    return task.partition("_")[0]


class Rehearsal:
    """A checkpoint and cohorts that fit it; every script is run once, when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "output"
        data = folder / "pretraining"
        write_synthetic(data, 12, n_rois=ROIS, frames=200, tr=2.0, valid=2, test=2)
        gradients = np.random.default_rng(0).normal(size=(ROIS, 5))
        np.savetxt(data / "gradients.csv", gradients, delimiter=",")
        # Another seed than that of the untrained encoder, and a few steps that move the weights.
        config = tiny_config(
            data, folder / "run", f"data.crop_size=[{ROIS},{FRAMES}]", "meta.seed=1"
        )
        train_here(config)

    def results(self, name: str) -> dict:
        """What the script leaves in ``results.json``."""
        protocol, task = name[:2], name[3:]
        folder = self.output / task / PROTOCOLS[protocol][0]
        if not folder.exists():
            self._run(script_of(name), cohort_of(task))
        assert (folder / "figure.png").stat().st_size > 0
        results = json.loads((folder / "results.json").read_text())
        text = (folder / "results.md").read_text()
        assert all(f"| {row['name']} " in text for row in results["rows"])
        return results

    def _run(self, script: Path, cohort: str) -> None:
        data = self.folder / cohort
        preset = dataclasses.replace(PRESETS[cohort], n=PEOPLE)
        make_cohort(data, preset, n_rois=ROIS)
        done = subprocess.run(
            [
                *("sh", str(script), "--load_path", str(self.folder / "run")),
                *("--data_path", str(data), "--output_root", str(self.output), "--devices", "cpu"),
                *("--num_seed", "1", "--epochs", "2"),
                *("evaluation.n_exchanges=20", "data.num_workers=0"),
            ],
            cwd=self.folder,  # it need not be started from the repository
            env={**os.environ, "VENV": sys.prefix, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=570,
            check=False,
        )
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory) -> Rehearsal:
    return Rehearsal(tmp_path_factory.mktemp("rehearsal"))


@pytest.mark.parametrize(
    "name", [pytest.param(s, marks=() if s in FEW else pytest.mark.slow) for s in SCRIPTS]
)
def test_script_runs_as_is(rehearsal, name):
    results = rehearsal.results(name)
    config = load_task(name[3:])
    protocol, head = PROTOCOLS[name[:2]]
    assert (results["task"], results["protocol"]) == (name[3:], protocol)
    rows = {(row["name"], row["head"]): row for row in results["rows"]}
    plain = "logistic" if config.data.type == "classification" else "ridge"
    baseline_head = plain if protocol == "fine_tune" else "LARS grid"
    constant = (KINDS[config.data.type], "none")
    for key in (
        *(("Brain-JEPA", head), constant, ("FC", plain), ("Untrained encoder", head)),
        *(("FC", baseline_head), ("ROI mean and variance", baseline_head)),
    ):
        defined = rows[key]["mean"].items()
        if key == constant:  # a constant correlates with nothing
            defined = [(m, v) for m, v in defined if m not in ("pearson", "spearman")]
        for metric, value in defined:
            assert value is not None, (key, metric)
            assert math.isfinite(value), (key, metric)
    # Everyone is there, in clips that need no padding.
    assert results["cohort"]["n_people"] == PEOPLE
    assert results["cohort"]["dropped"] == {}
    multiband = cohort_of(name[3:]) in ("hca", "ukb")
    stride = DOWNSAMPLE_STRIDE if multiband else 1
    assert results["checkpoint"]["sampling"] == {"stride": stride}
    assert results["published"]


@pytest.mark.parametrize("names", [FEW, pytest.param(SCRIPTS, marks=pytest.mark.slow)])
def test_results_become_one_table_with_the_published_numbers(rehearsal, names):
    folders = []
    for name in names:
        results = rehearsal.results(name)
        folders.append(rehearsal.output / results["task"] / results["protocol"])
    out = rehearsal.folder / f"joined{len(names)}"
    command = [
        sys.executable,
        "downstream_eval.py",
        "compare",
        *map(str, folders),
        "--out",
        str(out),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == out.with_suffix(".md").read_text()
    table = pd.read_csv(out.with_suffix(".tsv"), sep="\t", na_values=["n/a"])
    models = table[table["kind"] == "model"].set_index(["task", "protocol"])
    assert len(models) == len(names)
    for (task, _), row in models.iterrows():
        published = dataclasses.asdict(load_task(task).published)
        for metric, value in published.items():
            if value is not None:
                assert row[f"published_{metric}"] == value
                assert f"{value:g}" in done.stdout


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_script_under_any_shell_and_from_any_folder(tmp_path, shell):
    """To the end of the shell's part: Python refuses a checkpoint that is not there."""
    script = script_of("LP_hca_sex")
    here = {"folder": tmp_path, "beside": script.parent, "root": ROOT}
    for cwd, name in (
        (here["folder"], str(script)),
        (here["beside"], script.name),
        (here["root"], str(script.relative_to(ROOT))),
    ):
        done = subprocess.run(
            [shell, name, "--load_path", "there-is-none", "--output_root", str(tmp_path / "out")],
            cwd=cwd,
            env={**os.environ, "VENV": sys.prefix},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert "no checkpoint there-is-none" in done.stderr
    assert (tmp_path / "out" / "hca_sex" / "linear_probe" / "log.txt").exists()


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_environment_helps_under_any_shell(tmp_path, shell):
    for name in ("environment.sh", "test.sh"):
        done = subprocess.run(
            [shell, str(ROOT / "scripts" / name), "--help"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "Environment variables" in done.stdout


def test_every_task_has_its_scripts():
    there = set((ROOT / "scripts").glob("*/run_downstream_*.sh"))
    assert there == {script_of(name) for name in SCRIPTS}
    for name in SCRIPTS:
        text = script_of(name).read_text()
        assert f"sh {script_of(name).relative_to(ROOT)} --load_path CHECKPOINT" in text
        assert text.splitlines()[-1] == '. "$(dirname "$0")/../downstream.sh"'
        assert f"configs/downstream/{name[3:]}.yaml" in text
        assert f"make_synthetic_cohort.py {cohort_of(name[3:])}," in text


@pytest.mark.parametrize("task", TASKS)
def test_runs_of_the_rehearsal_cohort_fill_a_clip_at_a_tr_near_pretraining(task):
    data, preset = load_task(task).data, PRESETS[cohort_of(task)]
    assert data.target in ("age", *preset.positive, *preset.scores)
    stride = DOWNSAMPLE_STRIDE if data.downsample else 1
    assert frames_needed(FRAMES, np.array(stride)) <= preset.frames
    assert 1.9 < stride * preset.tr <= 3.0
