"""Inputs, splits, hidings and checkpoints beside the usual ones, through a whole evaluation."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import downstream_eval
from downstream_tasks import main_signal
from downstream_tasks.report.results import Results
from src.datasets.folder.writer import FolderWriter
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import reference, write_checkpoint
from tests.downstream_tasks.signal.conftest import FRAMES, ROIS, signal_folder, signal_task
from tests.downstream_tasks.signal.test_main_signal import flags

CPU = torch.device("cpu")
QUICK = {"untrained_seeds": 1, "folds": 2, "mlp_epochs": 1}


def test_every_input_of_the_global_signal_is_evaluated_once(two_networks_files, tmp_path):
    quick = QUICK | {"baselines": ["kernels"], "global_signal": ["as_trained", "keep", "remove"]}
    config = signal_task(*two_networks_files, tmp_path, signal=quick)
    results = main_signal.run(config, CPU)
    people = pd.read_csv(config.output_dir / "people.csv")
    assert set(people["variant"]) == {"as_trained", "remove"}  # it was trained with it kept
    r2 = people.pivot(index=["method", "participant_id"], columns="variant", values="r2")
    assert (r2["as_trained"] - r2["remove"]).abs().max() > 0.01
    kept, removed = (
        main_signal.run(
            signal_task(
                *two_networks_files,
                tmp_path / value,
                data={"global_signal": value},
                signal=QUICK | {"baselines": ["kernels"]},
            ),
            CPU,
        )
        for value in ("keep", "remove")
    )
    found = {(row.name, row.head): row.mean["r2"] for row in results.rows}
    for row in kept.rows:
        assert found[row.name, row.head] == pytest.approx(row.mean["r2"], abs=1e-6)
    for row in removed.rows:
        name = f"{row.name}, global signal removed"
        assert found[name, row.head] == pytest.approx(row.mean["r2"], abs=1e-6)
    assert len(results.comparisons) == 2 * len(kept.comparisons)
    text = (config.output_dir / "results.md").read_text()
    assert text.count("What this means") == 2
    assert "**Brain-JEPA, global signal removed**" in text


@pytest.mark.parametrize("protocol", ["imputation", "forecast"])
def test_a_signal_head_is_a_row_and_random_weights_have_none(protocol, tmp_path):
    data = signal_folder(tmp_path / "data")
    checkpoint = write_checkpoint(tmp_path / "mae.pth.tar", data, (ROIS, FRAMES), objective="mae")
    config = signal_task(
        data, checkpoint, tmp_path, protocol=protocol, signal=QUICK | {"baselines": ["mean"]}
    )
    rows = {row.representation: row for row in main_signal.run(config, CPU).rows}
    assert rows["model.head"].head == "signal head"
    assert "untrained.head" not in rows
    assert rows["model.head"].mean["r2"] < 0  # nobody trained it
    assert rows["model.head"].runs[0].chosen == {}


def test_folds_test_everyone_once_by_fits_to_others(two_networks_files, tmp_path):
    quick = QUICK | {"baselines": ["mean", "kernels"], "noise": 0.1}
    config = signal_task(
        *two_networks_files,
        tmp_path,
        protocol="imputation",
        split={"source": "cv", "folds": 3},
        signal=quick,
    )
    results = main_signal.run(config, CPU)
    people = pd.read_csv(config.output_dir / "people.csv")
    assert (people.groupby("method")["participant_id"].nunique() == 15).all()
    assert not people.duplicated(["method", "participant_id"]).any()
    mean = people[people["method"] == "mean"]
    np.testing.assert_allclose(mean["r2"], 0, atol=1e-6)
    splits = sorted(config.output_dir.glob("split_*.tsv"))
    assert len(splits) == 3
    assert results.cohort.n_units == 15


def test_each_site_is_tested_by_fits_to_the_others(two_networks_files, tmp_path):
    data, checkpoint = two_networks_files
    shutil.copytree(data, tmp_path / "data")
    where = tmp_path / "data" / "participants.tsv"
    table = pd.read_csv(where, sep="\t", dtype=str, keep_default_na=False)
    number = table["participant_id"].str[1:].astype(int)
    table.assign(site=np.where(number % 2, "a", "b")).to_csv(where, sep="\t", index=False)
    config = signal_task(
        tmp_path / "data",
        checkpoint,
        tmp_path,
        split={"source": "site", "site": "site"},
        signal=QUICK | {"baselines": ["ar"]},
    )
    assert main_signal.run(config, CPU).cohort.n_units == 15
    assert len(list(config.output_dir.glob("split_*.tsv"))) == 2


def test_hemispheres_by_centroids(two_networks_files, tmp_path):
    data = tmp_path / "data"
    rng = np.random.default_rng(0)
    with FolderWriter(
        data, roi_labels=[f"roi{r}" for r in range(ROIS)], atlas="test", provenance={}
    ) as writer:
        for i in range(10):
            split = ("train", "train", "train", "valid", "test")[i % 5]
            writer.add_run(
                rng.normal(size=(ROIS, 60)), participant_id=f"p{i}", run="01", tr=2.0, split=split
            )
    shutil.copy(two_networks_files[0] / "gradients.csv", data)
    x = np.where(np.arange(ROIS) < 5, -20.0, 20.0)
    x[-1] = 0.0  # on the midline: of neither side, and always seen
    np.savetxt(data / "centroids.csv", np.stack([x, x + 1, x**2], 1), delimiter=",")
    checkpoint = write_checkpoint(tmp_path / "c.pth.tar", data, (ROIS, FRAMES))
    config = signal_task(
        data,
        checkpoint,
        tmp_path,
        protocol="imputation",
        signal=QUICK | {"baselines": ["ridge"], "hidden": "hemisphere"},
    )
    results = main_signal.run(config, CPU)
    assert "left; right" in results.settings["hidden"]
    rois = pd.read_csv(config.output_dir / "rois.csv")
    assert sorted(rois["roi"].unique()) == list(range(1, ROIS))


def test_the_releases_checkpoint_from_the_command_line(tmp_path):
    path, arrays, given = reference("tiny_mapping", tmp_path)
    n_rois, frames = int(arrays["config"][0]), arrays["x"].shape[-1]
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    with FolderWriter(
        data, roi_labels=[f"roi{r}" for r in range(n_rois)], atlas="test", provenance={}
    ) as writer:
        for i in range(10):
            shared = rng.normal(size=(1, frames + 20)).cumsum(1)
            series = shared + rng.normal(size=(n_rois, frames + 20))
            split = ("train", "train", "train", "valid", "test")[i % 5]
            writer.add_run(series, participant_id=f"p{i}", run="01", tr=2.0, split=split)
    arguments = flags(data, path, tmp_path)
    arguments[-1] = f"data.gradient_csv_path={given['gradient_csv_path']}"
    arguments += ["--num_heads", str(given["num_heads"]), "--downstream_task", "imputation"]
    downstream_eval.main([*arguments, "data.normalization=zscore_roi"])
    results = Results.read(tmp_path / "demo_forecast" / "imputation" / "results.json")
    r2 = {row.representation: row.mean["r2"] for row in results.rows}
    assert r2["ridge"] > 0.5
    assert {"model.predictor", "untrained.predictor", "ridge+model"} <= set(r2)
    assert results.checkpoint.test_people_in_pretraining is None
    assert (
        "people whom it never saw"
        not in (tmp_path / "demo_forecast" / "imputation" / "results.md").read_text()
    )


def test_an_export_is_refused(two_networks_files, tmp_path):
    data, checkpoint = two_networks_files
    downstream_eval.main(
        ["export", "--load_path", str(checkpoint), "--out", str(tmp_path / "exported")]
    )
    with pytest.raises(UserError, match="holds no predictor"):
        downstream_eval.main(flags(data, tmp_path / "exported", tmp_path))
    assert json.loads((data / "dataset.json").read_text())
    assert not (tmp_path / "demo_forecast" / "forecast" / "results.json").exists()
