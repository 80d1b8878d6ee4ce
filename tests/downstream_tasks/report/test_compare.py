"""One table of several result folders."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import downstream_eval
from downstream_tasks.cohort.examples import CohortSummary
from downstream_tasks.report import compare
from downstream_tasks.report.results import (
    RESULTS_FILE,
    CheckpointInfo,
    Comparison,
    MethodResult,
    Results,
    RunResult,
)
from src.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def write_results(
    folder: Path,
    task: str,
    kind: str,
    values: dict,
    published: dict,
    protocol: str = "fine_tune",
) -> None:
    def row(name: str, row_kind: str, shift: float) -> MethodResult:
        mean = {metric: value + shift for metric, value in values.items()}
        interval = {metric: (value - 0.1, value + 0.1) for metric, value in mean.items()}
        runs = tuple(RunResult(f"seed{seed}", mean) for seed in range(5))
        sd = dict.fromkeys(values, 0.02)
        return MethodResult(name, "logistic", row_kind, mean, sd, interval, runs)

    model, fc = row("Brain-JEPA", "model", 0.0), row("FC", "baseline", 0.1)
    metric = next(iter(values))
    folder.mkdir(parents=True)
    Results(
        task=task,
        protocol=protocol,
        type=kind,
        target="t",
        unit="person",
        metrics=tuple(values),
        main_metric=metric,
        cohort=CohortSummary(30, 30, 30, 30),
        rows=(model, fc),
        checkpoint=CheckpointInfo("logs/run/jepa-latest.pth.tar"),
        comparisons=(Comparison(model.label, fc.label, metric, -0.1, (-0.2, 0.0)),),
        published=published,
    ).write(folder / RESULTS_FILE)


@pytest.fixture
def folders(tmp_path):
    sex = {"balanced_accuracy": 0.7, "accuracy": 0.71, "f1": 0.72, "auroc": 0.8}
    write_results(
        tmp_path / "r/hca_sex/fine_tune", "hca_sex", "classification", sex, {"accuracy": 0.8152}
    )
    age = {"mse": 0.5, "pearson": 0.6, "r2": 0.4}
    write_results(tmp_path / "r/hca_age/fine_tune", "hca_age", "regression", age, {"mse": 0.298})
    return tmp_path / "r"


def test_folders_become_one_table_with_published_numbers(folders, tmp_path, capsys):
    downstream_eval.main(["compare", str(folders), "--out", str(tmp_path / "joined")])
    text = capsys.readouterr().out
    assert (tmp_path / "joined.md").read_text() == text
    lines = [line for line in text.splitlines() if line.startswith("| hca_sex")]
    assert len(lines) == 2
    assert "Balanced accuracy 0.700 (0.020)" in lines[0]
    assert "0.600 to 0.800" in lines[0]
    assert "-0.100" in lines[0]
    assert "Accuracy 0.8152" in lines[0]
    assert "0.8152" not in lines[1]  # the paper has no FC baseline
    assert "MSE (z) 0.298" in text
    table = pd.read_csv(tmp_path / "joined.tsv", sep="\t", na_values=["n/a"])
    assert len(table) == 4
    model = table[(table["task"] == "hca_age") & (table["kind"] == "model")].iloc[0]
    assert (model["mse"], model["published_mse"]) == (0.5, 0.298)


def test_runs_of_one_task_are_told_apart(folders, capsys):
    values = {"balanced_accuracy": 0.7, "accuracy": 0.71}
    more = ("hca_sex", "classification", values, {"accuracy": 0.8152})
    write_results(folders / "hca_sex/fine_tune/eval", *more)
    write_results(folders / "hca_sex/linear_probe", *more, "linear_probe")
    downstream_eval.main(["compare", str(folders), str(folders / "hca_sex/fine_tune/eval")])
    lines = capsys.readouterr().out.splitlines()
    models = [line.split("|") for line in lines if "| hca_sex" in line and "Brain-JEPA" in line]
    cells = {line[-3].strip(): [cell.strip() for cell in line] for line in models}
    assert cells.keys() == {"hca_sex/fine_tune", "hca_sex/fine_tune/eval", "hca_sex/linear_probe"}
    assert cells["hca_sex/fine_tune/eval"][2] == "fine_tune, --eval"
    assert cells["hca_sex/fine_tune"][-2] == "logs/run/jepa-latest.pth.tar"
    assert cells["hca_sex/fine_tune"][-4] == "Accuracy 0.8152"
    assert cells["hca_sex/linear_probe"][-4] == "Accuracy 0.8152"  # as the heading says, fine-tuned


def test_published_numbers_of_a_majority_class_are_marked_once(tmp_path, folders, capsys):
    published, values = {"accuracy": 0.7684, "f1": 0.8632}, {"accuracy": 0.7, "f1": 0.7}
    write_results(folders / "adni/fine_tune", "adni", "classification", values, published)
    downstream_eval.main(["compare", str(folders), "--out", str(tmp_path / "joined")])
    text = capsys.readouterr().out
    (line,) = [line for line in text.splitlines() if "see below" in line]
    assert "Accuracy 0.7684, F1 0.8632 (of a majority class, see below)" in line
    said = "adni/fine_tune: **The published numbers are those of a majority class**"
    assert text.count(said) == 1 == text.count("those of a majority class")
    table = pd.read_csv(tmp_path / "joined.tsv", sep="\t", na_values=["n/a"])
    assert table["published_is_majority_class"].notna().sum() == 1


def test_published_numbers_stand_beside_the_model_as_it_is(tmp_path, folders, capsys):
    path = folders / "hca_sex/fine_tune" / RESULTS_FILE
    results = Results.read(path)
    without = dataclasses.replace(
        results.rows[0], name="Brain-JEPA, confounds removed", confounds_removed=True
    )
    dataclasses.replace(results, rows=(*results.rows, without)).write(path)
    downstream_eval.main(["compare", str(folders)])
    text = capsys.readouterr().out
    assert "confounds removed" in text
    assert text.count("Accuracy 0.8152") == 1


def test_a_folder_named_twice_counts_once(folders):
    once = compare.find_results([folders])
    assert compare.find_results([folders, folders / "hca_sex" / "fine_tune"]) == once


def test_results_that_were_scored_again_count_once(folders):
    once = compare.find_results([folders])
    again = folders / "hca_sex" / "fine_tune" / "eval"
    again.mkdir()
    (again / "results.json").write_text((again.parent / "results.json").read_text())
    assert compare.find_results([folders]) == once
    assert compare.find_results([again]) == [again.resolve() / "results.json"]
    (again.parent / "results.json").unlink()  # a checkpoint from elsewhere was only scored
    assert again.resolve() / "results.json" in compare.find_results([folders])


def test_what_is_no_result_folder(tmp_path):
    with pytest.raises(UserError, match="not a folder of results"):
        compare.find_results([tmp_path / "none"])
    with pytest.raises(UserError, match=r"holds no results\.json"):
        compare.find_results([tmp_path])
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(UserError, match="another program or version wrote it"):
        Results.read(tmp_path / "results.json")


def test_errors_of_the_program_are_one_line(tmp_path):
    command = [sys.executable, "downstream_eval.py", "compare", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
