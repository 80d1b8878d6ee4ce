"""Fine-tuning end to end on a small cohort: learning, evaluation, exactness."""

import dataclasses
import json
import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch

from downstream_tasks import engine_finetune, main_finetune
from downstream_tasks.cohort.clips import ExampleClips
from downstream_tasks.evaluation import prepare
from downstream_tasks.finetune_state import BEST, state_folder
from downstream_tasks.models_vit import fine_tuned_model
from src.datasets.folder import DataFolder
from src.datasets.folder.writer import FolderWriter
from src.pretrained.load import load_pretrained
from src.utils.distributed import Ranks
from tests.conftest import FRAMES, ROIS
from tests.downstream_tasks.conftest import CPU, reference, stored_weights


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process a real signal while it takes optimizer step ``step``."""
    real = engine_finetune.train_step

    def train_step(current, *args, **kwargs):
        record = real(current, *args, **kwargs)
        if current == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return record

    monkeypatch.setattr(engine_finetune, "train_step", train_step)


# --- the whole protocol ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(rehearsal, tmp_path_factory):
    """Two seeds of classification: the config and what run() returned."""
    config = rehearsal.task(
        tmp_path_factory.mktemp("trained"),
        evaluation={"num_seed": 2, "baselines": ["majority", "fc", "random_weights"]},
        fine_tune={"epochs": 6},
        heads={"C": [1e-3, 1e-2], "folds": 2},
    )
    return config, main_finetune.run(config, [CPU])


def test_learns_reports_and_evaluates_again(trained):
    config, results = trained
    model, *others = results.rows
    assert (model.name, model.head) == ("Brain-JEPA", "fine-tuned")
    assert model.mean["balanced_accuracy"] > 0.9
    frozen = "Brain-JEPA, frozen encoder"
    assert {row.name for row in others} == {
        *(frozen, "Majority class", "FC", f"FC + {frozen}", "Untrained encoder")
    }
    out = config.output_dir
    for name in (
        "config.yaml", "revision.txt", "log.txt", "metrics.jsonl", "predictions.tsv", "results.md",
        "figure.png", "tensorboard", "split_seed0.tsv", "seed1/metrics.jsonl",
    ):  # fmt: skip
        assert (out / name).exists(), name
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    of_model = [line for line in lines if line["method"] == "Brain-JEPA" and line["seed"] == 1]
    assert [line["epoch"] for line in of_model] == [1, 2, 3, 4, 5, 6]
    predictions = pd.read_csv(out / "predictions.tsv", sep="\t")
    own = predictions[predictions["method"] == "Brain-JEPA"]
    assert own.groupby("seed").size().tolist() == [8, 8]

    # The same command with --eval, and each stored checkpoint by itself.
    again = main_finetune.run(config, [CPU], evaluate=True)
    assert again.rows[0].mean == model.mean
    assert [r.metrics for r in again.rows[0].runs] == [r.metrics for r in model.runs]
    assert again.rows[3] == others[2]  # FC
    one = dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model, load_path=str(state_folder(config, "seed1") / BEST)
        ),
        output_root=config.output_root + "_one",
    )
    alone = main_finetune.run(one, [CPU], evaluate=True)
    assert alone.rows[0].runs[0].metrics == model.runs[1].metrics
    # Features that were fine-tuned on the training people add nothing that could be measured there.
    assert not any(row.kind == "joint" for row in alone.rows)
    assert (one.output_dir / "eval" / "results.md").exists()


def test_seeds_differ_in_start_and_order(trained):
    config, _ = trained
    assert not torch.allclose(stored_weights(config, 0), stored_weights(config, 1))


def test_stored_checkpoint_is_self_contained(trained):
    config, _ = trained
    stored = load_pretrained(state_folder(config, "seed0") / BEST)
    pretrained = load_pretrained(config.model.load_path)
    assert torch.equal(stored.training_people, pretrained.training_people)
    assert stored.kind == "fine_tuned"
    assert stored.clip_input.normalization == "none"
    assert stored.task["classes"] == ["a", "b"]
    assert len(stored.split["train"]) == 24
    assert stored.gradients is not None
    assert fine_tuned_model(stored)(torch.zeros(1, 1, ROIS, FRAMES)).shape == (1, 2)


def test_regression_in_both_units(make_config, rehearsal):
    config = make_config(
        data={"target": "age", "type": "regression"},
        evaluation={"baselines": ["fc"]},
        heads={"alpha": [0.1, 10.0], "folds": 2},
    )
    results = main_finetune.run(config, [CPU])
    metrics = results.rows[0].mean
    predictions = pd.read_csv(config.output_dir / "predictions.tsv", sep="\t")
    own = predictions[predictions["method"] == "Brain-JEPA"]
    raw = np.square(own["predicted"] - own["target"]).mean()
    assert metrics["mse_raw"] == pytest.approx(raw, rel=1e-4)
    stored = load_pretrained(state_folder(config, "seed0") / BEST)
    ages = DataFolder(rehearsal.data).runs.set_index("participant_id")["age"]
    train = ages.loc[stored.split["train"]].to_numpy(float)
    assert stored.task["target_mean"] == pytest.approx(train.mean())
    assert stored.task["target_scale"] == pytest.approx(train.std())
    assert metrics["mse"] == pytest.approx(raw / train.std() ** 2, rel=1e-4)
    again = main_finetune.run(config, [CPU], evaluate=True)
    for row, before in zip(again.rows, results.rows, strict=True):
        assert row.mean == before.mean, row.name


def test_events_use_their_scored_patch(make_config):
    config = make_config(
        data={"target": "state", "unit": "event", "scored_patch": 1, "delay_seconds": 30.0},
        fine_tune={"epochs": 1},
    )
    main_finetune.run(config, [CPU])
    stored = load_pretrained(state_folder(config, "seed0") / BEST)
    assert stored.task["patch"] == 1
    assert fine_tuned_model(stored).patch == 1


def test_release_checkpoint_is_scored(make_config, tmp_path):
    path, arrays, flags = reference("tiny_finetuned", tmp_path)
    rois = int(arrays["config"][0])
    data = tmp_path / "data"
    labels = [f"roi{r}" for r in range(rois)]
    rng = np.random.default_rng(0)
    with FolderWriter(data, roi_labels=labels, atlas="any", provenance={}) as writer:
        for i in range(20):
            series = rng.standard_normal((rois, 170))
            writer.add_run(series, participant_id=f"p{i}", tr=2.0, group="ab"[i % 2])
    config = make_config(
        data={"data_path": str(data), "gradient_csv_path": str(flags["gradient_csv_path"])},
        model={"load_path": str(path), "num_heads": flags["num_heads"]},
    )
    results = main_finetune.run(config, [CPU], evaluate=True)
    model = fine_tuned_model(load_pretrained(path, **flags))
    predictions = pd.read_csv(config.output_dir / "eval" / "predictions.tsv", sep="\t")
    row = predictions[predictions["method"] == "Brain-JEPA"].iloc[0]
    folder = DataFolder(data)
    number = int(np.flatnonzero(folder.runs["participant_id"] == row["participant_id"])[0])
    clip = torch.from_numpy(folder.series(number)[:, 5:165].copy())[None, None]
    expected = model(clip).softmax(dim=1)[0, 1].item()
    assert row["p_b"] == pytest.approx(expected, abs=1e-4)
    assert results.rows[1].name == "Majority class"


# --- exactness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [4, 6])  # in the middle, and at the end of the second epoch
def test_resume_is_bit_for_bit(make_config, monkeypatch, step):
    whole, parts = make_config("whole"), make_config("parts")
    expected = main_finetune.run(whole, [CPU])
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(SystemExit) as stopped:
            main_finetune.run(parts, [CPU])
    assert stopped.value.code == 128 + signal.SIGTERM
    assert not (parts.output_dir / "results.json").exists()
    assert main_finetune.run(parts, [CPU], resume=True).rows == expected.rows
    assert torch.equal(stored_weights(whole), stored_weights(parts))
    assert torch.equal(stored_weights(whole, name=BEST), stored_weights(parts, name=BEST))


def test_accumulation_and_devices_see_the_same_batches(make_config):
    """8 clips at once, 2 x 4 in turn, and 4 on each of two devices take the same steps."""
    same = {"drop_path": 0.0, "epochs": 1, "smoothing": 0.1}
    common = {"data": {"target": "few"}, "split": {"seed": 1}}
    common["evaluation"] = {"class_weights": "balanced"}
    at_once = make_config("a", fine_tune=same, **common)
    in_turn = make_config(
        "b", fine_tune=same | {"batch_size": 4, "accumulation_steps": 2}, **common
    )
    divided = make_config("c", fine_tune=same | {"batch_size": 4}, **common)
    for config, devices in ((at_once, [CPU]), (in_turn, [CPU]), (divided, [CPU, CPU])):
        main_finetune.run(config, devices)
    torch.testing.assert_close(stored_weights(at_once), stored_weights(in_turn), rtol=0, atol=2e-5)
    torch.testing.assert_close(stored_weights(at_once), stored_weights(divided), rtol=0, atol=2e-5)
    scores = [pd.read_csv(c.output_dir / "predictions.tsv", sep="\t") for c in (at_once, divided)]
    np.testing.assert_allclose(scores[0]["p_b"], scores[1]["p_b"], atol=1e-4)


def test_test_people_are_read_once_and_last(make_config, monkeypatch):
    config = make_config(fine_tune={"epochs": 2})
    seen = []
    real = engine_finetune.predict

    def predict(model, loader, *args):
        scores = real(model, loader, *args)
        seen.append(set(np.flatnonzero(np.isfinite(scores[:, 0]))))
        return scores

    trained = set()
    take_step = engine_finetune.train_step

    def train_step(*args):
        record = take_step(*args)
        trained.update(example for micro in record.rows for example in micro)
        return record

    monkeypatch.setattr(engine_finetune, "predict", predict)
    monkeypatch.setattr(engine_finetune, "train_step", train_step)
    main_finetune.run(config, [CPU])
    split = prepare(config).problems[0].split
    assert trained == set(split.train)
    assert seen == [set(split.valid), set(split.valid), set(split.test)]


def test_clips_of_a_run_are_averaged(make_config):
    config = make_config(evaluation={"clips": 3})
    main_finetune.run(config, [CPU])
    stored = load_pretrained(state_folder(config, "seed0") / BEST)
    problem = prepare(config).problems[0]
    scores = engine_finetune.score_test(stored, problem, config, Ranks(CPU))
    example = problem.split.test[0]
    clips = ExampleClips(problem.cohort, config.data, stored, 3, np.array([example]))
    x = torch.stack([clips[i]["fmri"] for i in range(3)])
    expected = fine_tuned_model(stored)(x).double().softmax(dim=1).mean(dim=0)
    np.testing.assert_allclose(scores[example], expected, atol=1e-6)
    assert np.isnan(scores[problem.split.train]).all()
