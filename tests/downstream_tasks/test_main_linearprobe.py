"""Frozen protocols end to end on forty synthetic people, and fingerprinting."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from downstream_tasks import main_fingerprint, main_linearprobe
from downstream_tasks.config_checks import task_from_dict
from downstream_tasks.main_fingerprint import Z_SCORED
from downstream_tasks.report.checkpoints import compare_checkpoints
from downstream_tasks.report.results import Results
from src.datasets.folder.writer import FolderWriter
from src.utils.checkpoint import load_checkpoint, save_checkpoint
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import labelled_folder, write_checkpoint

CPU = torch.device("cpu")
BASELINES = {
    "majority", "fc", "fc_run", "roi_stats", "random_weights", "time_permuted_jointly",
    "time_permuted_per_roi", "phase_randomised", "held_constant",
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen")
    data = labelled_folder(folder / "data", runs=2)
    return data, write_checkpoint(folder / "jepa-latest.pth.tar", data)


def config_of(files, out, protocol, **changes):
    data, checkpoint = files
    kind = changes.pop("type", "classification")
    sections = {
        "name": "small",
        "protocol": protocol,
        "output_root": str(out),
        "data": {
            "data_path": str(data),
            "target": "age" if kind == "regression" else "sex",
            "type": kind,
            "num_workers": 0,
        },
        "model": {"load_path": str(checkpoint)},
        "evaluation": {"num_seed": 2, "n_exchanges": 50},
        "linear_probe": {"epochs": 4, "grid_blr": [1.0, 300.0], "batch_size": 8},
        "attentive_probe": {"epochs": 2, "lr": [1e-3], "warmup_epochs": 0},
        "heads": {"folds": 3, "C": [0.01, 1.0], "alpha": [10.0, 100.0], "n_neighbors": [3]},
    }
    for name, section in changes.items():
        sections[name] = sections.get(name, {}) | section
    return task_from_dict(sections, "test")


def by_name(results):
    return {(row.name, row.head): row for row in results.rows}


@pytest.mark.parametrize(
    ("protocol", "kind", "head"),
    [
        ("linear_probe", "classification", "published LARS probe"),
        ("linear_probe", "regression", "published LARS probe"),
        ("attentive_probe", "classification", "attention"),
        ("logistic", "classification", "logistic"),
        ("ridge", "regression", "ridge"),
        ("knn", "classification", "knn"),
    ],
)
def test_every_protocol_prints_all_baselines_beside_the_model(
    files, tmp_path, protocol, kind, head
):
    config = config_of(files, tmp_path, protocol, type=kind)
    results = main_linearprobe.run(config, CPU)
    rows = by_name(results)
    plain = "logistic" if kind == "classification" else "ridge"
    own = {"attentive_probe": plain, "linear_probe": "LARS grid"}.get(protocol, head)
    assert rows.keys() >= {
        ("Brain-JEPA", head),
        ("FC", plain),
        ("ROI mean and variance", own),
        ("Untrained encoder", head),
        ("Brain-JEPA, frames shuffled, all ROIs alike", head),
        ("Brain-JEPA, frames shuffled in each ROI", head),
        ("Brain-JEPA, phases randomised", head),
        ("Brain-JEPA, held constant", head),
    }
    assert results.rows[0].kind == "model"
    assert all(len(row.runs) == 2 for row in results.rows)
    folder = tmp_path / "small" / protocol
    assert Results.read(folder / "results.json").protocol == protocol
    assert {"split_seed0.tsv", "split_seed1.tsv", "log.txt", "predictions.tsv", "figure.png"} <= {
        path.name for path in folder.iterdir()
    }
    metric = config.metric
    if kind == "classification":
        assert rows["FC", plain].mean[metric] > 0.9  # the effect is in the connectivity
        assert rows["Majority class", "none"].mean[metric] == 0.5
    else:
        if protocol == "ridge":  # the LARS probe of four epochs has hardly begun
            assert rows["ROI mean and variance", own].mean[metric] < 0.9
        assert rows["Mean of the training people", "none"].mean["r2"] <= 0


def test_the_grid_of_the_linear_probe_has_its_own_name(files, tmp_path):
    config = config_of(files, tmp_path, "linear_probe", linear_probe={"recipe": "grid"})
    rows = main_linearprobe.run(config, CPU).rows
    assert {row.head for row in rows} == {"LARS grid", "none", "logistic"}
    again = main_linearprobe.run(config, CPU, evaluate=True).rows[0]
    assert again.mean == pytest.approx(rows[0].mean)
    published = config_of(files, tmp_path, "linear_probe")
    with pytest.raises(UserError, match="head was LARS grid, is published LARS probe"):
        main_linearprobe.run(published, CPU, evaluate=True)


def test_seeds_and_settings_cost_no_encoder_pass(files, tmp_path, passes):
    config = config_of(files, tmp_path, "linear_probe", evaluation={"num_seed": 4})
    main_linearprobe.run(config, CPU)
    # Model, untrained and four controls of time: 80 runs each, whatever the seeds and epochs.
    assert len(passes) == 6 * 80
    passes.clear()
    main_linearprobe.run(config_of(files, tmp_path, "logistic"), CPU)
    assert not passes  # another head on the stored features


def test_runs_of_different_seeds_differ_and_repeat(files, tmp_path):
    config = config_of(files, tmp_path / "a", "linear_probe")
    first = main_linearprobe.run(config, CPU)
    table = pd.read_csv(tmp_path / "a/small/linear_probe/predictions.tsv", sep="\t")
    model = table[table["method"] == "Brain-JEPA"]
    p = [model[model["seed"] == seed]["p_M"].to_numpy() for seed in (0, 1)]
    assert not np.array_equal(*p)
    config = config_of(files, tmp_path / "b", "linear_probe")
    second = main_linearprobe.run(config, CPU)
    assert first.rows == second.rows


def test_resampled_splits_are_new_people_and_allow_a_test(files, tmp_path):
    config = config_of(
        files, tmp_path, "logistic", split={"resample": True}, evaluation={"num_seed": 3}
    )
    results = main_linearprobe.run(config, CPU)
    people = [
        pd.read_csv(tmp_path / f"small/logistic/split_seed{seed}.tsv", sep="\t")
        .query("split == 'test'")["participant_id"]
        .tolist()
        for seed in range(3)
    ]
    assert people[0] != people[1]
    assert 0 <= results.comparison(results.model, results.fc).p <= 1


def test_families_are_never_on_both_sides(files, tmp_path):
    main_linearprobe.run(config_of(files, tmp_path, "logistic"), CPU)
    table = pd.read_csv(tmp_path / "small/logistic/split_seed0.tsv", sep="\t")
    table["family"] = table["participant_id"].str[1:].astype(int) // 2
    assert (table.groupby("family")["split"].nunique() == 1).all()


@pytest.mark.parametrize("protocol", ["linear_probe", "attentive_probe", "logistic"])
def test_eval_scores_what_was_stored_and_gives_the_same_numbers(files, tmp_path, protocol):
    config = config_of(files, tmp_path, protocol)
    trained = main_linearprobe.run(config, CPU).rows[0]
    again = main_linearprobe.run(config, CPU, evaluate=True).rows[0]
    assert again.mean == pytest.approx(trained.mean)
    assert again.interval["auroc"] == pytest.approx(trained.interval["auroc"])
    folder = tmp_path / "small" / protocol
    columns = ["participant_id", "seed", "p_M"]
    stored, evaluated = (
        pd.read_csv(path, sep="\t").query("method == 'Brain-JEPA'")[columns]
        for path in (folder / "predictions.tsv", folder / "eval" / "predictions.tsv")
    )
    pd.testing.assert_frame_equal(stored, evaluated)


def test_eval_without_a_stored_head(files, tmp_path):
    with pytest.raises(UserError, match=r"holds no splits; run without --eval first"):
        main_linearprobe.run(config_of(files, tmp_path, "logistic"), CPU, evaluate=True)
    config = config_of(files, tmp_path, "knn")
    main_linearprobe.run(config, CPU)
    with pytest.raises(UserError, match="no stored head"):
        main_linearprobe.run(config, CPU, evaluate=True)
    more = config_of(files, tmp_path, "knn", evaluation={"num_seed": 3})
    with pytest.raises(UserError, match=r"the run before had 2 seeds.*--num_seed 2"):
        main_linearprobe.run(more, CPU, evaluate=True)


def test_eval_refuses_a_head_of_something_else(files, tmp_path):
    data, checkpoint = files
    config = config_of(files, tmp_path, "logistic")
    main_linearprobe.run(config, CPU)
    other = tmp_path / "other.pth.tar"
    state = load_checkpoint(checkpoint)
    state["target_encoder"] = {k: v * 1.01 for k, v in state["target_encoder"].items()}
    save_checkpoint(other, state)
    for changed, said in (
        (config_of((data, other), tmp_path, "logistic"), "encoder was"),
        (config_of(files, tmp_path, "logistic", data={"classes": ["M", "F"]}), "classes was"),
        (config_of(files, tmp_path, "logistic", evaluation={"level": "roi"}), "level was pooled"),
    ):
        with pytest.raises(UserError, match=f"head of another evaluation: {said}"):
            main_linearprobe.run(changed, CPU, evaluate=True)


def test_heads_of_an_earlier_run_go(files, tmp_path):
    for seeds, left in ((2, ["head_seed0.safetensors", "head_seed1.safetensors"]),
                        (1, ["head_seed0.safetensors"])):  # fmt: skip
        config = config_of(files, tmp_path, "logistic", evaluation={"num_seed": seeds})
        main_linearprobe.run(config, CPU)
        assert sorted(p.name for p in config.output_dir.glob("head_*")) == left


def test_data_of_other_rois_are_refused(files, tmp_path):
    _, checkpoint = files
    labels = [f"roi{r}" for r in range(12)][::-1]
    with FolderWriter(tmp_path / "other", roi_labels=labels, atlas="test", provenance={}) as writer:
        writer.add_run(np.random.default_rng(0).normal(size=(12, 30)), participant_id="a", tr=2.0)
    config = config_of((tmp_path / "other", checkpoint), tmp_path, "logistic")
    with pytest.raises(UserError, match="ROI 1 is 'roi11'"):
        main_linearprobe.run(config, CPU)


def test_a_checkpoint_is_needed(files, tmp_path):
    config = config_of(files, tmp_path, "logistic", model={"load_path": None})
    with pytest.raises(UserError, match="--load_path"):
        main_linearprobe.run(config, CPU)


# --- fingerprinting -------------------------------------------------------------------------------


def fingerprint_config(files, out, **changes):
    return config_of(
        files,
        out,
        "fingerprint",
        evaluation={"level": "roi", "baselines": ["fc", "log_sd", "random_weights"]},
        **changes,
    )


def test_fingerprinting_writes_the_same_kind_of_folder(files, tmp_path):
    results = main_fingerprint.run(fingerprint_config(files, tmp_path), CPU)
    rows = by_name(results)
    assert rows["Chance", "none"].mean["identification"] == pytest.approx(1 / 40)
    line = rows["ROI log SD", "correlation"]
    assert line.mean["identification"] == pytest.approx(
        (line.mean["forward"] + line.mean["backward"]) / 2
    )
    model = results.model
    untrained = rows["Untrained encoder", "correlation"]
    for reference in (results.fc, untrained):
        versus = results.comparison(model, reference)
        assert versus.interval[0] <= versus.difference <= versus.interval[1]
        assert 0 < versus.p <= 1
    # People are looked for in the pretraining by their ids here too.
    split = pd.read_csv(files[0] / "participants.tsv", sep="\t", dtype=str)
    in_training = split.query("split == 'train'")["participant_id"].nunique()
    assert results.checkpoint.test_people_in_pretraining == in_training > 0
    folder = tmp_path / "small" / "fingerprint"
    predictions = pd.read_csv(folder / "predictions.tsv", sep="\t")
    assert len(predictions) == 2 * 4 * 40
    by_correlation = predictions.query("method == 'FC' and head == 'correlation'")
    hits = by_correlation.eval("participant_id == forward").mean()
    assert hits == pytest.approx(rows["FC", "correlation"].mean["forward"])
    z_scored = predictions.query("method == 'FC' and head == @Z_SCORED")
    assert (z_scored["forward"].to_numpy() != by_correlation["forward"].to_numpy()).any()
    found = z_scored.eval("participant_id == forward").mean()
    assert found == pytest.approx(rows["FC", Z_SCORED].mean["forward"])
    shutil.copytree(folder, tmp_path / "again")
    paths = [where / "results.json" for where in (folder, tmp_path / "again")]
    (pair,) = compare_checkpoints({path: Results.read(path) for path in paths})
    assert (pair.metric, pair.found.difference, pair.found.p) == ("identification", 0, 1)
    assert pair.found.test == "paired permutation"
    assert "Chance" in (folder / "results.md").read_text()


def test_fingerprinting_stores_nothing_to_score_again(files, tmp_path):
    with pytest.raises(UserError, match="fingerprint stores nothing"):
        main_fingerprint.run(fingerprint_config(files, tmp_path), CPU, evaluate=True)


def test_fingerprinting_needs_two_runs_of_each(files, tmp_path):
    config = fingerprint_config(files, tmp_path, fingerprint={"pair": ["01", "03"]})
    with pytest.raises(
        UserError, match=r"0 people have runs with run '01' and '03'.*There are: 01"
    ):
        main_fingerprint.run(config, CPU)
    config = fingerprint_config(
        files, tmp_path, fingerprint={"column": "session", "pair": ["01", "02"]}
    )
    with pytest.raises(UserError, match="several runs with session '01'"):
        main_fingerprint.run(config, CPU)


def test_baseline_names():
    config = task_from_dict({"data": {"data_path": "x", "target": "y"}}, "test")
    assert set(config.evaluation.baselines) == BASELINES
