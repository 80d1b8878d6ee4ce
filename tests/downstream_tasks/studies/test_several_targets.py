"""Several targets end to end: the encoder runs once, the numbers are those of single runs."""

import pandas as pd
import pytest
import torch

import downstream_eval
from downstream_tasks import main_linearprobe
from downstream_tasks.finetune_state import BEST
from downstream_tasks.report.compare import find_results
from downstream_tasks.report.results import Results
from downstream_tasks.studies.several_targets import run_targets
from downstream_tasks.task_files import load_task, load_tasks
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import labelled_folder, write_checkpoint

CPU = torch.device("cpu")
TASK = """
data: {target: [age, sex], num_workers: 0}
evaluation: {num_seed: 1, baselines: [fc, random_weights], n_exchanges: 99}
linear_probe: {epochs: 2, batch_size: 8}
attentive_probe: {epochs: 1, lr: [1.0e-3], warmup_epochs: 0}
heads: {folds: 2, alpha: [10.0], C: [0.1], n_neighbors: [3]}
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Age is missing for four of forty people, sex for two others."""
    folder = tmp_path_factory.mktemp("several")
    data = labelled_folder(folder / "data")
    table = data / "participants.tsv"
    people = pd.read_csv(table, sep="\t", dtype=str, keep_default_na=False)
    people.loc[:3, "age"] = "n/a"
    people.loc[10:11, "sex"] = "n/a"
    people.to_csv(table, sep="\t", index=False)
    checkpoint = write_checkpoint(folder / "jepa-latest.pth.tar", data)
    path = folder / "both.yaml"
    path.write_text(TASK)
    return path, {"data.data_path": str(data), "model.load_path": str(checkpoint)}


def overrides_of(task, out, protocol, **more):
    return task[1] | {"output_root": str(out), "protocol": protocol} | more


@pytest.mark.parametrize("protocol", ["linear_probe", "attentive_probe", "knn"])
def test_targets_share_features_and_give_the_numbers_of_single_runs(
    task, tmp_path, passes, protocol
):
    configs = load_tasks(task[0], overrides=overrides_of(task, tmp_path / "a", protocol))
    found = run_targets(configs, [CPU])
    assert len(passes) == 2 * 40  # everyone once by the model and once by its untrained copy
    folder = tmp_path / "a" / "both" / protocol
    assert find_results([tmp_path / "a"]) == [folder / t / "results.json" for t in ("age", "sex")]
    age, sex = found.values()
    assert (age.type, age.cohort.n_people) == ("regression", 36)
    assert (sex.type, sex.cohort.n_people) == ("classification", 38)
    assert Results.read(folder / "sex" / "results.json").rows[0].mean == sex.rows[0].mean
    for together in found.values():
        changes = {"data.target": together.target, "data.type": together.type}
        overrides = overrides_of(task, tmp_path / "b", protocol, **changes)
        alone = main_linearprobe.run(load_task(task[0], overrides=overrides), CPU)
        assert alone.rows[0].mean == pytest.approx(together.rows[0].mean)
        assert alone.fc.mean == pytest.approx(together.fc.mean)
    assert (tmp_path / "b" / "both" / protocol / "results.json").is_file()


def test_the_program_prints_one_table(task, tmp_path, capsys):
    arguments = ["--config", str(task[0]), "--downstream_task", "knn", "--devices", "cpu"]
    arguments += [f"{key}={value}" for key, value in task[1].items()]
    arguments += [f"output_root={tmp_path}"]
    downstream_eval.main(arguments)
    printed = capsys.readouterr().out
    assert "| age " in printed
    assert "| sex " in printed
    assert "Balanced accuracy" in printed
    assert "MSE (z)" in printed
    downstream_eval.main([*arguments, "data.target=sex"])  # one target, as ever
    assert "# both: knn" in capsys.readouterr().out
    assert (tmp_path / "both" / "knn" / "results.json").is_file()
    everything = find_results([tmp_path])
    assert len(everything) == 3  # the folder of one target hides none of several


def test_stored_heads_of_every_target_are_scored_again(task, tmp_path):
    configs = load_tasks(task[0], overrides=overrides_of(task, tmp_path, "linear_probe"))
    first = run_targets(configs, [CPU])
    again = run_targets(configs, [CPU], evaluate=True)
    for stored, scored in zip(first.values(), again.values(), strict=True):
        assert scored.rows[0].mean == pytest.approx(stored.rows[0].mean)
    assert all(path.parent.name == "eval" for path in again)


def test_a_mistake_in_the_last_target_costs_neither_a_pass_nor_results(task, tmp_path, passes):
    overrides = overrides_of(task, tmp_path, "knn")
    first = run_targets(load_tasks(task[0], overrides=overrides), [CPU])
    passes.clear()
    changes = {"data.classes": {"sex": ["M", "X"]}}
    configs = load_tasks(task[0], overrides=overrides_of(task, tmp_path, "knn", **changes))
    with pytest.raises(UserError, match="'sex' has the values F, M; classes are M, X"):
        run_targets(configs, [CPU])
    assert not passes
    assert all(path.is_file() for path in first)


def test_fingerprint_has_no_targets(task, tmp_path):
    configs = load_tasks(task[0], overrides=overrides_of(task, tmp_path, "fingerprint"))
    with pytest.raises(UserError, match="fingerprint predicts no target"):
        run_targets(configs, [CPU])


def test_targets_are_fine_tuned_one_after_the_other(task, tmp_path):
    changes = {
        "fine_tune.epochs": 1,
        "fine_tune.batch_size": 8,
        "evaluation.baselines": ["majority"],
        "data.short_runs": "pad",
    }
    overrides = overrides_of(task, tmp_path, "fine_tune", **changes)
    found = run_targets(load_tasks(task[0], overrides=overrides), [CPU])
    folder = tmp_path / "both" / "fine_tune"
    assert list(found) == [folder / t / "results.json" for t in ("age", "sex")]
    for path, results in found.items():
        assert results.model.head == "fine-tuned"
        assert results.target == path.parent.name
        assert (path.parent / "seed0" / BEST).is_file()
