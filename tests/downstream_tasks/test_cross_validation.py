"""Cross-validation of whole evaluations: everyone is predicted by a model of other people."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from downstream_tasks import main_finetune, main_linearprobe
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import Rehearsal, labelled_folder, write_checkpoint
from tests.downstream_tasks.test_main_linearprobe import config_of

CPU = torch.device("cpu")
CV = {"source": "cv", "folds": 3}
FEW = {"num_seed": 2, "n_exchanges": 20, "baselines": ["majority", "fc"]}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    data = labelled_folder(folder / "data", runs=2)
    return data, write_checkpoint(folder / "jepa-latest.pth.tar", data)


@pytest.mark.parametrize("protocol", ["logistic", "linear_probe"])
def test_frozen_features(files, tmp_path, protocol):
    config = config_of(files, tmp_path, protocol, split=CV, evaluation=FEW)
    results = main_linearprobe.run(config, CPU)
    names = [f"seed{seed}_fold{fold}" for seed in range(2) for fold in range(3)]
    assert [run.name for run in results.rows[0].runs] == names
    assert [size.name for size in results.splits] == names
    folder = config.output_dir
    for name in names:
        assert (folder / f"head_{name}.safetensors").is_file()
    # Heads that pick their setting by inner cross-validation have all other people to train.
    valid = {size.valid for size in results.splits}
    assert valid == {0} if protocol == "logistic" else min(valid) > 0
    table = pd.read_csv(folder / "predictions.tsv", sep="\t")
    model = table[table["method"] == "Brain-JEPA"]
    assert len(model) == 2 * 40
    assert (model.groupby(["seed", "participant_id"]).size() == 1).all()
    assert set(model["fold"]) == {0, 1, 2}
    fc = next(row for row in results.rows if row.name == "FC")
    assert fc.mean["balanced_accuracy"] > 0.9
    again = main_linearprobe.run(config, CPU, evaluate=True)
    for one, other in zip(results.rows[0].runs, again.rows[0].runs, strict=True):
        assert one.metrics == pytest.approx(other.metrics)


def test_fine_tuning(tmp_path):
    rehearsal = Rehearsal(tmp_path / "rehearsal")
    config = rehearsal.task(
        tmp_path / "out", split={"source": "cv", "folds": 2}, fine_tune={"epochs": 1}
    )
    results = main_finetune.run(config, [CPU])
    assert [run.name for run in results.rows[0].runs] == ["seed0_fold0", "seed0_fold1"]
    states = [config.output_dir / f"seed0_fold{k}/finetune-best.pth.tar" for k in range(2)]
    assert all(path.is_file() for path in states)
    again = main_finetune.run(config, [CPU], evaluate=True)
    for one, other in zip(results.rows[0].runs, again.rows[0].runs, strict=True):
        assert one.metrics == pytest.approx(other.metrics)
    assert main_finetune.run(config, [CPU], resume=True).rows == results.rows
    with pytest.raises(UserError, match="seed0_fold0 already holds a run"):
        main_finetune.run(config, [CPU])
    states[1].unlink()
    with pytest.raises(UserError, match="do not test everyone exactly once: 20 people"):
        main_finetune.run(config, [CPU], evaluate=True)


def test_sites(files, tmp_path):
    # The columns of a folder are free; the part of the folder serves as a site of 24, 8, 8 people.
    config = config_of(
        files, tmp_path, "logistic", split={"source": "site", "site": "split"}, evaluation=FEW
    )
    results = main_linearprobe.run(config, CPU)
    assert [run.name for run in results.rows[0].runs] == [f"seed0_fold{k}" for k in range(3)]
    assert [size.test for size in results.splits] == [8, 24, 8]  # test, train, valid
    stored = json.loads((config.output_dir / "results.json").read_text())
    assert any("fold 1 is train (24 people)" in note for note in stored["notes"])
    assert np.isfinite(results.rows[0].mean["balanced_accuracy"])
