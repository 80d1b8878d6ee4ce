"""Reports of experiments in their folders, of results that are written down without a training."""

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scripts.ablation.cost import status
from scripts.ablation.experiment import read_experiment
from scripts.ablation.laboratory import Laboratory
from src.utils.errors import UserError

ROWS = {"model": ("model", "Brain-JEPA"), "log_sd": ("baseline", "ROI log SD"),
        "random_weights": ("baseline", "Untrained encoder")}  # fmt: skip
ENDPOINTS = [
    {"task": "age", "metric": "squared_error", "against": "untrained"},
    {"task": "age", "metric": "squared_error", "against": "arm shallow"},
]


def error_of(*words: object) -> float:
    """A prediction error that differs between people, rows, arms and data sets."""
    return np.random.default_rng([*map(ord, "".join(map(str, words)))]).uniform(0, 3)


def write_results(lab: Laboratory, arms: Collection[str] = ("shallow", "deep")) -> None:
    """Lay down the laboratory, and results of all people of ``arms``, as an evaluation does."""
    lab.lay_down()
    for run in lab.runs:
        if run.arm.name not in arms:
            continue
        fold = lab.folds[run.data.label][run.fold]
        for task in run.tasks:
            folder = run.results_folder(task)
            folder.mkdir(parents=True)
            lines = [
                {"method": title, "head": "ridge", "seed": 0, "fold": None, "participant_id": p,
                 "target": 0.0, "predicted": error_of(p, title, run.arm.name, run.data.label)}
                for _, title in ROWS.values() for p in fold.people("test")
            ]  # fmt: skip
            pd.DataFrame(lines).to_csv(folder / "predictions.tsv", sep="\t", index=False)
            rows = [
                {"name": title, "head": "ridge", "kind": kind, "representation": representation}
                for representation, (kind, title) in ROWS.items()
            ]
            (folder / "results.json").write_text(json.dumps({"rows": rows}))
            run.task_done(task).write_text(json.dumps({"asked": run.asked(task)}))
        (run.path / "done").touch()


def gains(people: Collection[str], arm: str, data: str = "people") -> np.ndarray:
    """By how much the model's squared error is below the untrained network's."""
    model, untrained = (
        np.array([error_of(p, title, arm, data) for p in sorted(people)])
        for title in ("Brain-JEPA", "Untrained encoder")
    )
    return untrained**2 - model**2


@pytest.fixture
def laboratory(write_experiment: Callable[..., Path], tmp_path: Path) -> Callable[..., Laboratory]:
    """A function that opens an experiment of a name, beside those of other names."""

    def laboratory(name: str, **changed: object) -> Laboratory:
        path = write_experiment(**{"endpoints": ENDPOINTS, "folds": 2} | changed)
        return Laboratory.open(read_experiment(path), tmp_path / "experiments" / name)

    return laboratory


def section(report: str, title: str) -> list[str]:
    """Lines of a table of the report, its head left out."""
    _, found, rest = report.partition(f"## {title}\n")
    assert found, report
    lines = [line for line in rest.partition("## ")[0].splitlines() if line.startswith("|")]
    return lines[2:]


def scored(lab: Laboratory, data: str = "people") -> set[str]:
    return {p for fold in lab.folds[data] for p in fold.people("test")}


def test_who_was_read_in_a_choice_is_counted_and_the_endpoints_are_given_without_them(laboratory):
    choice, final = laboratory("choice", stage="choose"), laboratory("final")
    write_results(final)
    assert "14, by none of whom anything here was chosen" in final.report()
    choice.lay_down()
    assert "by none of whom" in final.report()  # nobody has been scored in it
    shutil.rmtree(choice.out)
    write_results(choice)
    report = final.report()
    assert "of 14 people scored here, 11 were read when something was chosen (choice)" in report
    others = scored(final) - scored(choice)
    assert len(others) == 3
    everyone = section(report, "Endpoints")
    fresh = section(report, "Among people by whom nothing was chosen")
    for lines, people in ((everyone, scored(final)), (fresh, others)):
        assert len(lines) == 3  # the untrained network in either arm, and one arm by the other
        found = gains(people, "deep")
        assert f"| {found.mean():+.3f} [" in lines[1]
        assert f"| {(found > 0).sum()} of {len(people)} |" in lines[1]


def test_where_everyone_was_read_nobody_is_left_for_a_second_table(laboratory):
    choice = laboratory("choice", stage="choose", folds=1)  # validation people are scored
    write_results(choice)
    final = laboratory("final")
    read = scored(choice)
    assert len(read) == 3
    write_results(final)
    assert "14 people scored here, 3 were read when something was chosen" in final.report()
    table = choice.out / "people.csv"
    people = pd.read_csv(table, dtype={"participant_id": str})
    people.assign(scored_in_fold=0).to_csv(table, index=False)
    report = final.report()
    assert "14 were read when something was chosen (choice)" in report
    assert "and nobody else is left" in report
    assert "Among people" not in report


def test_an_experiment_elsewhere_is_named_by_chosen_by(laboratory, tmp_path):
    choice = laboratory("choice", stage="choose")
    write_results(choice)
    moved = choice.out.rename(tmp_path / "elsewhere")
    final = laboratory("final", chosen_by=[str(moved)])
    write_results(final)
    assert "11 were read when something was chosen (elsewhere)" in final.report()
    wrong = laboratory("final", chosen_by=[str(tmp_path / "no")])
    with pytest.raises(UserError, match=r"chosen_by: .*no is no experiment: it has no people.csv"):
        wrong.report()


def test_people_of_two_data_sets_are_told_apart_though_their_ids_are_the_same(
    laboratory, people, tmp_path
):
    other = tmp_path / "other"
    shutil.copytree(people, other)
    table = other / "participants.tsv"
    runs = pd.read_csv(table, sep="\t", dtype=str, keep_default_na=False)
    by_run: Mapping[str, str] = {"train": "train", "valid": "test", "test": "valid"}
    runs.assign(split=runs["split"].map(by_run)).to_csv(table, sep="\t", index=False)
    data = [{"folder": str(f), "name": name, "gradients": 5}
            for f, name in ((people, "people"), (other, "other"))]  # fmt: skip
    endpoints = [*ENDPOINTS, ENDPOINTS[0] | {"data": ["other"], "arms": ["deep"]}]
    lab = laboratory("both", data=data, folds=1, endpoints=endpoints)
    assert lab.runs[0].name == "shallow/people_seed0_fold0"
    write_results(lab)
    lines = section(lab.report(), "Endpoints")
    assert [line.split("|")[2].strip() for line in lines] == [
        *("people", "people", "other", "other", "people", "other", "other")
    ]
    for line, name, arm in zip(
        lines[:4], ("people", "people", "other", "other"), ("shallow", "deep") * 2, strict=True
    ):
        found = gains(scored(lab, name), arm, name)
        assert f"| {found.mean():+.3f} [" in line
        assert f"| {(found > 0).sum()} of 3 |" in line
    assert lines[6] == lines[3]
    assert {tuple(sorted(scored(lab, name))) for name in ("people", "other")} == {
        tuple(sorted(set(runs.loc[runs["split"] == part, "participant_id"])))
        for part in ("test", "valid")
    }


@pytest.mark.parametrize("arm", ["shallow", "deep"])
def test_a_single_finished_arm_is_reported_and_the_other_is_waited_for(laboratory, arm):
    lab = laboratory("one", folds=1, arms={"shallow": {"steps": 8}, "deep": {"steps": 80}})
    write_results(lab, arms=[arm])
    report = lab.report()
    assert "1 of 2 runs are done" in report
    assert "**design**: 2 arms x 1 seed, one split, people" in report
    (line,) = section(report, "Endpoints")
    assert f"| {arm} |" in line
    assert f"| {gains(scored(lab), arm).mean():+.3f} [" in line
    assert (lab.out / "figure.png").stat().st_size > 10_000  # with curves of one point
    assert "1 of 2 runs are done" in status(lab)


def test_means_are_shown_of_the_metrics_that_endpoints_name(laboratory):
    lab = laboratory("metrics", folds=1)
    write_results(lab)
    report = lab.report()
    assert "people age squared_error, mean over 3 people:" in report
    assert "absolute_error" not in report
    assert "absolute_error" in set(pd.read_csv(lab.out / "results.csv")["metric"])
    assert "absolute_error" in laboratory("metrics", folds=1, endpoints=[]).report()


def test_a_report_before_the_first_result_says_so(laboratory):
    lab = laboratory("none")
    lab.lay_down()
    assert "No endpoint has results yet." in lab.report()
    assert not (lab.out / "figure.png").exists()
