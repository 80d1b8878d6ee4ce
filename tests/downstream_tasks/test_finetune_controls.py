"""Controls of fine-tuning: trained as the model is, on other weights or other clips."""

import json
import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch

from downstream_tasks import engine_finetune, main_finetune, main_linearprobe
from downstream_tasks.evaluation import prepare
from downstream_tasks.features.registry import REGISTRY
from downstream_tasks.finetune_state import BEST, LATEST, state_folder
from downstream_tasks.heads.protocols import head_name
from downstream_tasks.scoring.metrics import selection_key
from downstream_tasks.task_files import load_task
from src.models.downstream_vit import DownstreamViT
from src.pretrained.load import load_pretrained
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import CPU, stored_weights

CONTROLS = ("random_weights", "time_permuted_jointly", "held_constant")
TITLES = [REGISTRY[name].title for name in CONTROLS]
FROZEN = "Brain-JEPA, frozen encoder"
HEADS = {"C": [1e-2, 1.0], "folds": 2}


def rows_of(results):
    return {(row.name, row.head): row for row in results.rows}


@pytest.fixture(scope="module")
def trained(rehearsal, tmp_path_factory):
    """Two seeds of the model and of three controls: the config and what run() returned."""
    config = rehearsal.task(
        tmp_path_factory.mktemp("controls"),
        evaluation={"num_seed": 2, "baselines": ["majority", *CONTROLS]},
        fine_tune={"epochs": 3, "blr": 3.0},  # so high that the last epoch is not always the best
        heads=HEADS,
    )
    return config, main_finetune.run(config, [CPU])


def test_every_control_is_fine_tuned_with_the_models_settings_and_seeds(trained):
    config, results = trained
    assert [(row.name, row.head, row.kind) for row in results.rows] == [
        ("Brain-JEPA", "fine-tuned", "model"),
        (FROZEN, "logistic", "readout"),
        ("Majority class", "none", "baseline"),
        (TITLES[0], "fine-tuned", "baseline"),
        (TITLES[1], "fine-tuned", "control"),
        (TITLES[2], "fine-tuned", "control"),
    ]
    for seed in (0, 1):
        model = load_pretrained(state_folder(config, f"seed{seed}") / BEST)
        for name in CONTROLS:
            folder = config.output_dir / "controls" / name / f"seed{seed}"
            assert state_folder(config, f"seed{seed}", name) == folder
            control = load_pretrained(folder / BEST)
            assert control.task["control"] == name
            assert control.split == model.split
            assert not torch.equal(
                stored_weights(config, seed), stored_weights(config, seed, control=name)
            )
    lines = (config.output_dir / "metrics.jsonl").read_text().splitlines()
    curves = pd.DataFrame(json.loads(line) for line in lines)
    for title in ("Brain-JEPA", *TITLES):
        of_seed = curves[curves["method"] == title].groupby("seed")["epoch"]
        assert of_seed.apply(list).tolist() == [[1, 2, 3]] * 2


def test_each_control_chooses_its_epoch_by_its_own_validation_scores(trained):
    """Method 8.8, and not by those of the model."""
    config, results = trained
    rows = rows_of(results)
    chosen = {}
    for name, title in zip(("model", *CONTROLS), ("Brain-JEPA", *TITLES), strict=True):
        for seed in (0, 1):
            path = state_folder(config, f"seed{seed}", name) / "metrics.jsonl"
            curve = [json.loads(line) for line in path.read_text().splitlines()]
            best = max(
                curve,
                key=lambda e: selection_key(
                    config.metric, e[f"valid_{config.metric}"], e["valid_loss"]
                ),
            )
            said = rows[title, "fine-tuned"].runs[seed].chosen
            assert said["epoch"] == best["epoch"]
            assert said[f"valid_{config.metric}"] == best[f"valid_{config.metric}"]
            chosen[name, seed] = best["epoch"]
    # Or the rule above would say little.
    assert any(epoch != chosen["model", seed] for (_, seed), epoch in chosen.items())


def test_where_each_begins_and_what_it_is_shown(make_config, monkeypatch):
    """Weights before the first step, and clips of training, validation and test."""
    config = make_config(evaluation={"baselines": CONTROLS}, fine_tune={"epochs": 1}, heads=HEADS)
    first, shown = [], []
    real, forward = engine_finetune.train_step, DownstreamViT.forward

    def train_step(step, batches, network, *args):
        if step == 1:
            first.append({name: p.detach().clone() for name, p in network.named_parameters()})
            shown.append([])
        return real(step, batches, network, *args)

    def see(self, x):
        shown[-1].append((self.training, x.detach().clone()))
        return forward(self, x)

    monkeypatch.setattr(engine_finetune, "train_step", train_step)
    monkeypatch.setattr(DownstreamViT, "forward", see)
    main_finetune.run(config, [CPU])

    model, untrained, permuted, constant = first
    fresh = load_pretrained(config.model.load_path).untrained(0)
    for name, value in fresh.named_parameters():
        assert torch.equal(untrained[f"encoder.{name}"], value), name
    for other in (permuted, constant):
        assert all(torch.equal(other[name], value) for name, value in model.items())
    assert torch.equal(untrained["head.weight"], model["head.weight"])
    blocks = "encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(untrained[blocks], model[blocks])

    for clips in shown:  # 24 people in three steps, then 8 who validate and 8 who are tested
        counts = [
            sum(len(x) for training, x in clips if training is mode) for mode in (True, False)
        ]
        assert counts == [24, 16]
    as_is, same, shuffled, held = ([x for _, x in clips] for clips in shown)
    for x, y, z, c in zip(as_is, same, shuffled, held, strict=True):
        assert torch.equal(x, y)
        torch.testing.assert_close(x.sort(-1).values, z.sort(-1).values)
        assert (x != z).float().mean() > 0.8
        torch.testing.assert_close(c, x.mean(-1, keepdim=True).expand_as(x))


def test_frozen_controls_and_none(make_config):
    shared = {"baselines": ["majority", "random_weights", "held_constant"]}
    cheap = make_config(
        "cheap", evaluation=shared | {"controls": "frozen"}, fine_tune={"epochs": 1}, heads=HEADS
    )
    frozen = main_finetune.run(cheap, [CPU])
    assert [(row.name, row.head) for row in frozen.rows] == [
        ("Brain-JEPA", "fine-tuned"),
        (FROZEN, "logistic"),
        ("Majority class", "none"),
        ("Untrained encoder", "logistic"),
        ("Brain-JEPA, held constant", "logistic"),
    ]
    assert not (cheap.output_dir / "controls").exists()
    # The frozen encoder's row is what the protocol of that head says of it.
    probe = make_config("cheap", evaluation=shared, heads=HEADS)
    probe.protocol = "logistic"
    probed = rows_of(main_linearprobe.run(probe, CPU))
    assert rows_of(frozen)[FROZEN, "logistic"].mean == probed["Brain-JEPA", "logistic"].mean

    # A finished run gets its controls, or loses them, with --resume: the model stays as it is.
    for controls, names in (("none", {"Brain-JEPA", "Majority class"}), ("same", None)):
        changed = make_config(
            "cheap", evaluation=shared | {"controls": controls}, fine_tune={"epochs": 1}
        )
        before = stored_weights(changed)
        results = main_finetune.run(changed, [CPU], resume=True)
        assert names is None or {row.name for row in results.rows} == names
        assert torch.equal(before, stored_weights(changed))
        assert results.rows[0] == frozen.rows[0]
    assert ("Untrained encoder", "fine-tuned") in rows_of(results)


@pytest.mark.parametrize("protocol", ["linear_probe", "attentive_probe"])
@pytest.mark.parametrize("controls", ["same", "frozen", "none"])
def test_controls_of_frozen_protocols(make_config, protocol, controls):
    config = make_config(
        evaluation={"baselines": ["random_weights", "held_constant"], "controls": controls},
        linear_probe={"epochs": 1, "blr": 0.1},
        attentive_probe={"epochs": 1, "lr": [1e-3], "warmup_epochs": 0},
        heads=HEADS,
    )
    config.protocol = protocol
    rows = main_linearprobe.run(config, CPU).rows
    own = head_name(config)
    head = {"same": own, "frozen": "logistic"}
    expected = [("Brain-JEPA", own)]
    if controls != "none":
        names = ("Untrained encoder", "Brain-JEPA, held constant")
        expected += [(name, head[controls]) for name in names]
    assert [(row.name, row.head) for row in rows] == expected


def test_stopped_in_a_control_resumes_bit_for_bit(make_config, monkeypatch):
    evaluation = {"baselines": ["time_permuted_per_roi", "random_weights"]}
    task = {"evaluation": evaluation, "fine_tune": {"epochs": 2}, "heads": HEADS}
    whole, parts = make_config("whole", **task), make_config("parts", **task)
    expected = main_finetune.run(whole, [CPU])
    real, taken = engine_finetune.train_step, []

    def train_step(*args):
        record = real(*args)
        taken.append(1)
        if len(taken) == 6 + 2:  # the second step of the first control
            os.kill(os.getpid(), signal.SIGTERM)
        return record

    with monkeypatch.context() as patch:
        patch.setattr(engine_finetune, "train_step", train_step)
        with pytest.raises(SystemExit) as stopped:
            main_finetune.run(parts, [CPU])
    assert stopped.value.code == 128 + signal.SIGTERM
    assert not state_folder(parts, "seed0", "random_weights").exists()
    with pytest.raises(UserError, match="already holds a run"):
        main_finetune.run(parts, [CPU])
    assert main_finetune.run(parts, [CPU], resume=True).rows == expected.rows
    for name in ("model", "time_permuted_per_roi", "random_weights"):
        here, there = (stored_weights(config, control=name) for config in (whole, parts))
        assert torch.equal(here, there), name


def test_a_stored_control_refuses_the_run_before_anything_is_written(make_config):
    task = {"evaluation": {"baselines": ["held_constant"]}, "fine_tune": {"epochs": 1}}
    config = make_config(**task, heads=HEADS)
    main_finetune.run(config, [CPU])
    (state_folder(config, "seed0") / LATEST).unlink()
    before = (config.output_dir / "results.json").read_bytes()
    with pytest.raises(UserError, match="controls/held_constant/seed0 already holds a run"):
        main_finetune.run(config, [CPU])
    assert (config.output_dir / "results.json").read_bytes() == before


def test_eval_scores_the_stored_controls_and_the_frozen_rows_again(trained, make_config):
    config, results = trained
    again = main_finetune.run(config, [CPU], evaluate=True)
    assert [(r.name, r.head) for r in again.rows] == [(r.name, r.head) for r in results.rows]
    for here, there in zip(again.rows, results.rows, strict=True):
        assert here.mean == there.mean, here.name


def test_eval_of_one_control_shows_it_its_own_kind_of_clips(trained, rehearsal, tmp_path):
    config, results = trained
    path = state_folder(config, "seed1", "time_permuted_jointly") / BEST
    one = rehearsal.task(
        tmp_path, model={"load_path": str(path)}, evaluation={"baselines": ["majority"]}
    )
    alone = main_finetune.run(one, [CPU], evaluate=True)
    assert [row.name for row in alone.rows] == [TITLES[1], "Majority class"]
    expected = rows_of(results)[TITLES[1], "fine-tuned"].runs[1].metrics
    assert alone.rows[0].runs[0].metrics == expected


def test_eval_names_the_control_that_was_not_trained(make_config):
    few = make_config(evaluation={"baselines": ["held_constant"]}, fine_tune={"epochs": 1})
    main_finetune.run(few, [CPU])
    more = make_config(evaluation={"baselines": ["held_constant", "random_weights"]})
    with pytest.raises(UserError, match=r"random_weights.*evaluation\.controls=none"):
        main_finetune.run(more, [CPU], evaluate=True)


def test_controls_of_every_fold(make_config):
    config = make_config(
        split={"source": "cv", "folds": 3},
        evaluation={"baselines": ["held_constant"]},
        fine_tune={"epochs": 1},
        heads=HEADS,
    )
    results = main_finetune.run(config, [CPU])
    runs = [f"seed0_fold{fold}" for fold in range(3)]
    assert [run.name for run in rows_of(results)[TITLES[2], "fine-tuned"].runs] == runs
    splits = []
    for run in runs:
        files = [state_folder(config, run, name) / BEST for name in ("model", "held_constant")]
        model, control = map(load_pretrained, files)
        assert model.split == control.split
        splits.append(model.split)
    assert splits[0] != splits[1]
    again = main_finetune.run(config, [CPU], evaluate=True)
    assert [row.mean for row in again.rows] == [row.mean for row in results.rows]


def test_two_devices_train_the_same_controls(make_config):
    same = {"drop_path": 0.0, "epochs": 1}
    evaluation = {"baselines": ["time_permuted_per_roi"]}
    at_once = make_config("a", fine_tune=same, evaluation=evaluation, heads=HEADS)
    divided = make_config(
        "b", fine_tune=same | {"batch_size": 4}, evaluation=evaluation, heads=HEADS
    )
    for config, devices in ((at_once, [CPU]), (divided, [CPU, CPU])):
        main_finetune.run(config, devices)
    here, there = (
        stored_weights(config, control="time_permuted_per_roi") for config in (at_once, divided)
    )
    torch.testing.assert_close(here, there, rtol=0, atol=2e-5)
    scores = [pd.read_csv(c.output_dir / "predictions.tsv", sep="\t") for c in (at_once, divided)]
    np.testing.assert_allclose(scores[0]["p_b"], scores[1]["p_b"], atol=1e-4)


def test_the_cost_is_said_before_training_and_timed_after_an_epoch(trained):
    config, _ = trained
    lines = (config.output_dir / "log.txt").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if "first step" in line)
    (said,) = [i for i, line in enumerate(lines) if "fine-tuning 8 networks" in line]
    assert said < first
    # (1 model + 3 controls) x 2 seeds x 3 epochs x 3 steps
    assert "the model and 3 controls, 2 times each" in lines[said]
    assert "72 steps" in lines[said]
    assert "evaluation.controls=frozen trains 2 of them" in lines[said]
    (timed,) = [line for line in lines if "left" in line and "steps" in line]
    assert "about 0:" in timed
    assert "the 69 steps that are left" in timed
    assert "evaluation.controls=frozen" in timed


def test_too_few_people_in_any_run_is_found_before_the_first_step(make_config, monkeypatch):
    config = make_config(fine_tune={"batch_size": 32})
    monkeypatch.setattr(engine_finetune, "train_step", None)
    with pytest.raises(UserError, match="24 training examples are fewer than"):
        main_finetune.run(config, [CPU])


def test_the_table_says_what_controls_went_through(trained, make_config):
    config, results = trained
    assert results.settings["controls"] == "fine-tuned as the model is"
    assert "controls: fine-tuned as the model is" in (config.output_dir / "results.md").read_text()
    shared = {"baselines": ["held_constant"]}
    said = {}
    for controls in ("same", "frozen", "none"):
        probe = make_config(evaluation=shared | {"controls": controls}, heads=HEADS)
        probe.protocol = "logistic"
        said[controls] = main_linearprobe.run(probe, CPU).settings["controls"]
    assert said == {
        "same": "the model's head",
        "frozen": "frozen features and logistic regression",
        "none": "left out",
    }


def test_default_is_the_same_protocol():
    assert load_task("hca_sex").evaluation.controls == "same"
    with pytest.raises(UserError, match=r"evaluation\.controls.*same, frozen, none"):
        load_task("hca_sex", overrides={"evaluation.controls": "cheap"})


def test_an_untrained_network_has_not_seen_anyone(trained):
    config, _ = trained
    people = prepare(config).pretrained.training_people
    assert len(people) > 0
    of_control = {
        name: load_pretrained(state_folder(config, "seed0", name) / BEST).training_people
        for name in CONTROLS
    }
    assert len(of_control["random_weights"]) == 0
    assert torch.equal(of_control["held_constant"], people)
