"""The study with known truth: a tiny one run by the real programs, and its report."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from scripts import ablate, known_truth
from scripts.ablation.experiment import read_experiment
from src.config import load_config
from src.datasets.prepare.known_truth import TRAITS, write_known_truth

ROOT = Path(__file__).parents[2]


def test_the_study_of_the_repository_can_be_read():
    plan = read_experiment(ROOT / "configs/experiments/known_truth.yaml")
    config = load_config(ROOT / plan.experiment.pretrain)
    assert config.grid == (90, 4)
    people = [int(data.folder.rpartition("_")[2]) for data in plan.data]
    for data, number in zip(plan.data, people, strict=True):
        assert f"--train {number} " in data.make[0]
        assert number * data.set["data.repeats"] == 128 * config.data.batch_size
    assert {task.label for task in plan.tasks} == {*TRAITS, *known_truth.SIGNAL}


def test_report_of_a_tiny_study(tmp_path, capsys, monkeypatch):
    small = {"n_rois": 30, "frames": 64, "group_fc": "model"}
    data, people = tmp_path / "truth_8", tmp_path / "truth_test"
    write_known_truth(data, train=8, valid=3, test=2, **small)
    write_known_truth(people, train=0, valid=0, test=40, **small)
    there = {"data.data_path": str(people)}
    study = {
        "name": "tiny",
        "stage": "report",
        "pretrain": str(ROOT / "configs/experiments/pretrain/known_truth.yaml"),
        "data": [{"folder": str(data), "gradients": 5, "set": {"data.repeats": 1}}],
        "arms": {
            "few": {
                "data.crop_size": [30, 32],
                "logging.monitor_every": 10,
                "logging.monitor_clips": 4,
                "meta.depth": 1,
                "meta.pred_depth": 1,
            }
        },
        "seeds": [0],
        "folds": 1,
        "steps": 2,
        "warmup": 0.1,
        "evaluate": [
            {
                "task": "known_truth",
                "name": "static",
                "set": there
                | {
                    "data.target": "static",
                    "split.source": "cv",
                    "evaluation.clips": 2,
                    "evaluation.train_sizes": [8, 1.0],
                },
            },
            {
                "task": "demo_imputation",
                "name": "imputation",
                "set": there
                | {
                    "split.source": "random",
                    "evaluation.clips": 1,
                    "signal.draws": 1,
                    "signal.untrained_seeds": 1,
                    "signal.baselines": ["ridge"],
                    "signal.stack": [],
                },
            },
        ],
        "endpoints": [],
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(study))
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out"
    assert ablate.main([str(path), "--out", str(out), "--devices", "cpu"]) == 0

    known_truth.main([str(out)])
    text = capsys.readouterr().out
    assert (out / "known_truth.md").read_text() in text
    assert (out / "known_truth.png").stat().st_size > 10_000
    table = pd.read_csv(out / "known_truth.tsv", sep="\t", na_values="n/a")
    model = table[(table["role"] == "model") & table["labelled"].isna()]
    assert set(model["task"]) == {"static", "imputation"}
    assert set(model["people"]) == {8}
    assert set(model["steps"]) == {2}
    assert (model["low"] <= model["high"]).all()
    static = table[table["task"] == "static"].set_index("method")
    results = out / "runs/few/seed0_fold0/evaluation/static"
    stated = pd.read_csv(next(results.rglob("table.tsv")), sep="\t", na_values="n/a")
    stated = stated[(stated["method"] == "FC") & (stated["metric"] == "r2")]["mean"].item()
    whole = static[static["labelled"].isna()]
    assert whole.loc["FC", "r2"] == pytest.approx(stated, abs=1e-5)
    folder = pd.read_csv(people / "participants.tsv", sep="\t")
    truth = np.corrcoef(folder["static"], folder["static_latent"])[0, 1]
    assert whole.loc[known_truth.ORACLE, "r"] == pytest.approx(truth, abs=1e-5)
    assert set(static["labelled"].dropna()) == {8, 32}
    assert "Untrained encoder" in set(static.index)


def planted(**changes) -> pd.DataFrame:
    """A trait that grows with people by a power law, and a baseline at .45."""
    lines = []
    for people in (16, 64, 256, 1024):
        for seed in range(3):
            r2 = 0.7 - 1.5 * people**-0.5 + 0.01 * (seed - 1)
            where = {"people": people, "steps": 384, "seed": seed, "task": "dynamics"}
            where["labelled"] = np.nan
            lines += [
                where | {"method": "m", "role": "model", "r2": r2, "low": r2 - 0.4, "high": 1},
                where | {"method": "AR", "role": "raw", "r2": 0.55},
                where | {"method": "u", "role": "untrained", "r2": 0.3},
                where | {"method": "o", "role": "oracle", "r2": 0.7},
            ]
    return pd.DataFrame(lines)


def test_a_planted_law_is_in_the_report():
    table = planted()
    laws = {over: law for _, over, _, law in known_truth.fits(table)}
    law = laws["people of the pretraining"]
    assert law.low < 0.5 < law.high
    text = known_truth.markdown(table, known_truth.fits(table))
    assert f"| {law}" in text
    assert "above the untrained copy: from 64 people, 384 steps" in text
    assert "above AR (0.550): from 256 people, 384 steps" in text
    table["low"] = -0.1
    assert "above the untrained copy: at no size run" in known_truth.markdown(table, [])
