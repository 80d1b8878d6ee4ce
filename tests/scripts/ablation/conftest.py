"""A tiny experiment on simulated people, run by the real programs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from scripts.ablation.runs import ROOT
from src.datasets.prepare.synthetic import write_synthetic
from tests.conftest import ROIS, tiny_values

PROGRAM = [sys.executable, str(ROOT / "scripts" / "ablate.py")]


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen synthetic people with an age, one run each."""
    path = tmp_path_factory.mktemp("lab") / "people"
    write_synthetic(path, 14, n_rois=ROIS, frames=100, tr=2.0, valid=3, test=3)
    table = path / "participants.tsv"
    runs = pd.read_csv(table, sep="\t", dtype=str, keep_default_na=False)
    runs["age"] = np.random.default_rng(0).integers(20, 80, len(runs)).astype(str)
    runs.to_csv(table, sep="\t", index=False)
    return path


@pytest.fixture
def write_experiment(people: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that writes an experiment of two arms, some of its keys changed."""

    def write(**changed: Any) -> Path:
        pretrain = tiny_values(people, tmp_path)
        del pretrain["data"]["data_dir"], pretrain["data"]["gradient_csv_path"]
        pretrain["meta"]["accumulation_steps"] = 1
        task = {
            "protocol": "ridge",
            "data": {"target": "age", "type": "regression", "num_workers": 0},
            "evaluation": {"baselines": ["majority", "log_sd", "random_weights"], "num_seed": 1},
        }
        for name, values in (("pretrain", pretrain), ("age", task)):
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
        endpoint = {"task": "age", "metric": "squared_error"}
        experiment = {
            "name": "tiny",
            "question": "Does depth matter?",
            "prediction": "No.",
            "stage": "report",
            "pretrain": str(tmp_path / "pretrain.yaml"),
            "data": {"folder": str(people), "name": "people", "gradients": 5},
            "arms": {"shallow": None, "deep": {"meta.depth": 3}},
            "steps": 8,
            "warmup": 0.25,
            "evaluate": str(tmp_path / "age.yaml"),
            "endpoints": [
                endpoint | {"against": "untrained"},
                endpoint | {"against": "best_raw"},
                endpoint | {"against": "arm shallow"},
            ],
        }
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(experiment | changed, sort_keys=False))
        return path

    return write


def ablate(*arguments: object) -> subprocess.CompletedProcess:
    """Run the program to its end."""
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=280
    )
