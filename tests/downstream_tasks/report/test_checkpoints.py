"""Checkpoint against checkpoint, from the folders that an evaluation writes."""

import numpy as np
import pandas as pd
import pytest

import downstream_eval
from downstream_tasks.cohort.problem import Problem, make_target
from downstream_tasks.cohort.runs import make_splits
from downstream_tasks.config import SplitConfig
from downstream_tasks.config_checks import task_from_dict
from downstream_tasks.heads.result import FittedMethod, HeadResult
from downstream_tasks.report.checkpoints import compare_checkpoints
from downstream_tasks.report.results import CheckpointInfo, Results
from downstream_tasks.report.write import write_report
from downstream_tasks.scoring.design import Design
from downstream_tasks.scoring.paired import compare
from downstream_tasks.scoring.weighted import ScoredRun
from tests.downstream_tasks.conftest import make_cohort


def evaluate(folder, strength, *, cohort=None, resample=False, split_seed=0, kind="classification"):
    """A result folder of a model of so much signal, and the problems it was scored on."""
    if cohort is None:
        cohort = make_cohort(np.arange(100) % 2, classes=("F", "M"), runs=2)
    config = task_from_dict(
        {
            "name": "demo",
            "protocol": "linear_probe",
            "data": {"data_path": "x", "target": "t", "type": kind},
            "split": {"resample": resample},
            "evaluation": {"n_exchanges": 99},
        },
        "test",
    )
    runs = make_splits(cohort, SplitConfig(resample=resample, seed=split_seed), (0, 1, 2))
    problems = [
        Problem(cohort, run.split, make_target(cohort, run.split), config.metric, run.seed)
        for run in runs
    ]
    results = []
    for problem in problems:
        rng = np.random.default_rng([problem.seed, int(10 * strength)])
        noise = rng.normal(size=len(cohort.y))
        if cohort.is_classification:
            p = 1 / (1 + np.exp(-strength * (2 * cohort.y - 1) - noise))
            results.append(HeadResult(np.stack([1 - p, p], axis=1), {}))
        else:
            results.append(HeadResult(strength * problem.target.y + noise, {}))
    method = FittedMethod("Brain-JEPA", "LARS", "model", results)
    write_report(folder, config, cohort, problems, [method], CheckpointInfo(str(folder)))
    return folder / "results.json", problems, results


def pairs_of(*paths):
    return compare_checkpoints({path: Results.read(path) for path in paths})


def test_two_checkpoints_are_compared_over_the_same_people(tmp_path, capsys):
    good, problems, results = evaluate(tmp_path / "a" / "good", 3.0)
    weak, _, others = evaluate(tmp_path / "a" / "weak", 0.1)
    (pair,) = pairs_of(good, weak)

    def scored(which):
        runs = []
        for problem, result in zip(problems, which, strict=True):
            test, cohort = problem.split.test, problem.cohort
            units, scores, y = cohort.unit_mean(result.scores[test], test)
            runs.append(ScoredRun(y, scores, cohort.unit_groups[units]))
        return runs

    expected = compare(
        scored(results), scored(others), "balanced_accuracy", Design("one_split", 60, 20)
    )
    assert pair.found.difference == pytest.approx(expected.difference)
    assert pair.found.interval == pytest.approx(expected.interval)
    assert pair.found.p == pytest.approx(expected.p)
    out = tmp_path / "joined"
    downstream_eval.main(["compare", str(tmp_path / "a"), "--out", str(out)])
    text = capsys.readouterr().out
    assert "Checkpoint against checkpoint" in text
    assert "| better" in text
    table = pd.read_csv(tmp_path / "joined_checkpoints.tsv", sep="\t", na_values=["n/a"])
    assert table["difference"][0] == pytest.approx(expected.difference)
    assert table["low"][0] > 0


def test_other_test_people_are_refused_with_a_reason(tmp_path):
    here, *_ = evaluate(tmp_path / "a", 3.0)
    there, *_ = evaluate(tmp_path / "b", 0.1, split_seed=5)
    (pair,) = pairs_of(here, there)
    assert pair.found is None
    assert "other test people (20 and 20, " in pair.reason
    assert "split.file" in pair.reason


def test_errors_are_compared_in_the_targets_unit(tmp_path):
    cohort = make_cohort(np.random.default_rng(0).normal(60, 10, 100))
    here, *_ = evaluate(tmp_path / "a", 1.0, cohort=cohort, kind="regression")
    there, *_ = evaluate(tmp_path / "b", 0.0, cohort=cohort, kind="regression")
    (pair,) = pairs_of(here, there)
    assert pair.metric == "mse_raw"
    means = [Results.read(path).model.mean["mse_raw"] for path in (here, there)]
    assert pair.found.difference == pytest.approx(means[0] - means[1], rel=1e-4)


def test_new_people_for_every_run_get_the_corrected_test(tmp_path):
    here, *_ = evaluate(tmp_path / "a", 3.0, resample=True)
    there, *_ = evaluate(tmp_path / "b", 0.1, resample=True)
    (pair,) = pairs_of(here, there)
    assert pair.found.test == "corrected resampled t-test"


def test_what_is_no_pair(tmp_path):
    here, *_ = evaluate(tmp_path / "a", 3.0)
    there, *_ = evaluate(tmp_path / "b", 0.1)
    (there.parent / "predictions.tsv").unlink()
    (pair,) = pairs_of(here, there)
    assert "predictions.tsv is missing" in pair.reason
    assert pairs_of(here) == []
