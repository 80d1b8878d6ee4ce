"""The result folder: numbers that agree with each other, text that does not say more than them."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import yaml

from downstream_tasks.cohort.examples import CohortSummary, Dropped
from downstream_tasks.cohort.problem import Problem, make_target
from downstream_tasks.cohort.runs import make_splits
from downstream_tasks.cohort.splits import Split
from downstream_tasks.config import SplitConfig
from downstream_tasks.config_checks import task_from_dict
from downstream_tasks.heads.result import FittedMethod, HeadResult
from downstream_tasks.report.comparisons import PICKED, best_baseline
from downstream_tasks.report.markdown import (
    interval_text,
    markdown_table,
    mean_sd_text,
    results_markdown,
)
from downstream_tasks.report.results import (
    CheckpointInfo,
    Comparison,
    MethodResult,
    Results,
    SplitSizes,
    without_nan,
)
from downstream_tasks.report.rows import score_rows
from downstream_tasks.report.write import write_report
from downstream_tasks.scoring.metrics import classification_metrics, regression_metrics
from tests.downstream_tasks.conftest import make_cohort


def config_of(kind="classification", resample=False, **evaluation):
    return task_from_dict(
        {
            "name": "demo",
            "protocol": "linear_probe",
            "data": {"data_path": "x", "target": "t", "type": kind},
            "split": {"resample": resample},
            "evaluation": {"n_exchanges": 200, **evaluation},
            "published": {"accuracy": 0.8152},
        },
        "test",
    )


def problems_of(cohort, config, seeds=(0, 1, 2)):
    runs = make_splits(cohort, SplitConfig(resample=config.split.resample), seeds)
    return [
        Problem(cohort, split, make_target(cohort, split), config.metric, seed, fold)
        for seed, fold, split in runs
    ]


def noisy_scores(cohort, strength, seed):
    rng = np.random.default_rng(seed)
    logit = strength * (2 * cohort.y - 1) + rng.normal(size=len(cohort.y))
    p = 1 / (1 + np.exp(-logit))
    return np.stack([1 - p, p], axis=1)


def two_class_report(tmp_path, resample=False, model=1.0, fc=1.0, first_seed=0):
    cohort = make_cohort(np.arange(100) % 2, classes=("F", "M"), runs=2)
    config = config_of(resample=resample)
    problems = problems_of(cohort, config)
    history = [
        {"epoch": 1, "train_loss": 0.7, "valid_loss": np.nan, "valid_balanced_accuracy": 0.5}
    ]
    rows = [
        FittedMethod(
            "Brain-JEPA",
            "LARS",
            "model",
            [
                HeadResult(noisy_scores(cohort, model, first_seed + s), {"blr": 0.1}, history)
                for s in range(3)
            ],
        ),
        FittedMethod(
            "FC",
            "logistic",
            "baseline",
            [HeadResult(noisy_scores(cohort, fc, 100 + s), {}) for s in range(3)],
        ),
        FittedMethod(
            "Majority class", "none", "baseline", [HeadResult(np.full((200, 2), 0.5), {})] * 3
        ),
    ]
    results = write_report(tmp_path, config, cohort, problems, rows, CheckpointInfo("jepa.pth"))
    return cohort, problems, rows, results


def test_the_folder_holds_everything_and_agrees_with_itself(tmp_path):
    cohort, problems, rows, results = two_class_report(tmp_path)
    names = {"config.yaml", "revision.txt", "results.json", "results.md", "predictions.tsv"}
    names |= {"metrics.jsonl", "figure.png", "tensorboard"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["rows"][0]["mean"] == pytest.approx(results.rows[0].mean)
    assert stored["cohort"]["class_counts"] == {"F": 50, "M": 50}
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["name"] == "demo"

    predictions = pd.read_csv(tmp_path / "predictions.tsv", sep="\t")
    assert len(predictions) == 3 * 3 * 20  # methods x seeds x test people, not runs
    one = predictions[(predictions["method"] == "Brain-JEPA") & (predictions["seed"] == 1)]
    assert set(one["participant_id"]) == set(cohort.people[problems[1].split.test])
    accuracy = (one["target"] == one["predicted"]).mean()
    assert accuracy == pytest.approx(stored["rows"][0]["runs"][1]["metrics"]["accuracy"])
    # One person's probability is the mean over the two runs.
    person = one.iloc[0]
    mean = rows[0].results[1].scores[cohort.people == person["participant_id"]].mean(0)
    assert person["p_M"] == pytest.approx(mean[1], abs=1e-5)


def test_lines_hold_mean_sd_interval_and_confusion(tmp_path):
    cohort, problems, rows, results = two_class_report(tmp_path)
    line = results.rows[0]
    values = []
    for problem, result in zip(problems, rows[0].results, strict=True):
        _, scores, y = cohort.unit_mean(result.scores[problem.split.test], problem.split.test)
        values.append(classification_metrics(y, scores)["auroc"])
    assert line.mean["auroc"] == pytest.approx(np.mean(values))
    assert line.sd["auroc"] == pytest.approx(np.std(values, ddof=1))
    low, high = line.interval["auroc"]
    assert low < line.mean["auroc"] < high
    assert np.sum(line.runs[0].confusion) == 20
    assert results.rows[2].mean["balanced_accuracy"] == 0.5
    assert results.comparison(results.rows[1], results.fc) is None


def versus_fc(results):
    return results.comparison(results.model, results.fc)


def test_the_comparison_with_fc_is_paired_and_cautious(tmp_path):
    same = versus_fc(two_class_report(tmp_path / "a", first_seed=100)[3])
    low, high = same.interval  # the scores of FC: 20 people who agree are no certainty
    assert low < same.difference == 0 < high
    assert (same.p, same.test) == (1, "paired permutation")
    assert "not told apart from" in (tmp_path / "a" / "results.md").read_text()
    better = two_class_report(tmp_path / "b", resample=True, model=4.0, fc=0.0)[3]
    versus = versus_fc(better)
    assert versus.interval[0] > 0
    assert versus.p < 0.05
    assert versus.test == "corrected resampled t-test"
    text = (tmp_path / "b" / "results.md").read_text()
    assert "**better than**" in text
    assert "each with new people" in text
    two_class_report(tmp_path / "c", model=0.0, fc=4.0)
    assert "**worse than**" in (tmp_path / "c" / "results.md").read_text()


def test_folds_are_neither_one_split_nor_new_people(tmp_path):
    cohort = make_cohort(np.arange(60) % 2, classes=("F", "M"))
    config = config_of()
    problems = [
        Problem(cohort, split, make_target(cohort, split), config.metric, seed, fold)
        for seed, fold, split in make_splits(cohort, SplitConfig(source="cv"), range(2))
    ]
    fitted = [HeadResult(noisy_scores(cohort, 1, i), {}) for i in range(10)]
    row = FittedMethod("Brain-JEPA", "ridge", "model", fitted)
    results = write_report(tmp_path, config, cohort, problems, [row], CheckpointInfo("jepa.pth"))
    assert Results.read(tmp_path / "results.json").design == results.design == "folds"
    text = (tmp_path / "results.md").read_text()
    assert "10 runs, whose test people are folds: everyone is tested once in each repeat." in text
    assert "People of a run: training 36, validation 12, test 12; 10 runs" in text
    assert "on one split" not in text
    assert "what other splits of such people might give" in text


def test_rows_of_another_target_are_no_part_of_the_verdict():
    """What is left of the target without confounds has another variance, and other errors."""
    rows = [("Brain-JEPA", "model", 1.0), ("FC", "baseline", 1.2)]
    rows.append(("FC, confounds removed", "baseline", 0.3))
    found = bare_results(rows, [("FC", (-0.3, -0.1), 0.01)], main_metric="mse_raw", unit="person")
    other = dataclasses.replace(found.rows[2], other_target=True)
    text = results_markdown(dataclasses.replace(found, rows=(*found.rows[:2], other)))
    verdict = text[: text.index("| Method")]
    assert "**better than** plain functional connectivity, the best row without a" in verdict
    assert "confounds removed" not in verdict


def test_a_part_without_people_is_not_said_to_choose_settings():
    """Nested cross-validation has no validation part."""
    found = bare_results([("Brain-JEPA", "model", 1.0)])
    splits = (SplitSizes("seed0_fold0", 26, 0, 14), SplitSizes("seed0_fold1", 27, 0, 13))
    text = results_markdown(dataclasses.replace(found, splits=splits, design="folds"))
    assert "People of a run: training 26 to 27, test 13 to 14; 2 runs" in text
    assert "validation" not in text


def test_results_are_told_in_order_and_each_thing_once():
    rows = [("Brain-JEPA", "model", 0.9), ("FC", "baseline", 0.7), ("Raw clip", "baseline", 0.95)]
    compared = [("FC", (0.1, 0.3), 0.01), ("Raw clip", (-0.2, -0.01), 0.02)]
    left_out = {"no value of sex": Dropped(1, ("p00",))}
    found = bare_results(rows, compared, unit="person")
    found = dataclasses.replace(
        found,
        cohort=CohortSummary(3, 3, 3, 3, left_out, {"F": 1, "M": 2}),
        notes=("left out, no value of sex: 1",),
        settings={"time": "TR 2 s"},
        published={"accuracy": 0.8},
    )
    text = results_markdown(found)
    parts = ["# t: p", "On these people the model is", "3 people", "| Method", "Mean over runs"]
    parts += ["| Paired comparison", "Settings: time: TR 2 s.", "Notes:", "Published for this task"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert text.lower().count("left out, no value of sex") == 1
    # FC is the reference of the first table; the other comparisons have one of their own.
    table = text[text.index("| Paired comparison") : text.index("Settings: ")]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    model = ["Brain-JEPA (h) - Raw clip (h)", "Balanced accuracy -0.105"]
    assert [line for line in lines if line] == [[*model, "-0.200 to -0.010", "0.020"]]


def test_what_lost_its_confounds_is_compared_with_what_did():
    rng = np.random.default_rng(0)
    cohort = make_cohort(np.arange(100) % 2, classes=("F", "M"))
    problems = problems_of(cohort, config_of())
    untrained = ("Untrained encoder", "baseline", "random_weights")
    kinds = [("Brain-JEPA", "model", "model"), ("FC", "baseline", "fc"), untrained]
    kinds.append(("FC + Brain-JEPA", "joint", "fc+model"))
    methods = [
        FittedMethod(
            name + (", confounds removed" if removed else ""),
            "h",
            kind,
            [HeadResult(noisy_scores(cohort, 1.0, int(rng.integers(99))), {})] * 3,
            representation,
            confounds_removed=removed,
        )
        for removed in (False, True)
        for name, kind, representation in kinds
    ]
    rows, comparisons = score_rows(cohort, problems, methods, config_of())
    assert [row.confounds_removed for row in rows] == [False] * 4 + [True] * 4
    pairs = [(c.method, c.reference) for c in comparisons if c.reference != "FC (h)"]
    assert {("removed" in method, "removed" in other) for method, other in pairs} == {
        (False, False),
        (True, True),
    }
    joint = "FC + Brain-JEPA, confounds removed (h)", "FC, confounds removed (h)"
    model = "Brain-JEPA, confounds removed (h)", "Untrained encoder, confounds removed (h)"
    assert {joint, model} < set(pairs)
    best = best_baseline(rows, "balanced_accuracy")
    assert best is not None
    assert not best.confounds_removed


def test_a_difference_without_an_interval_is_not_tested():
    rows = [("Brain-JEPA", "model", 1.0), ("FC", "baseline", 0.5)]
    found = bare_results(rows, [("FC", (np.nan, np.nan), np.nan)])
    found = dataclasses.replace(
        found, comparisons=(dataclasses.replace(found.comparisons[0], difference=0.5),)
    )
    text = results_markdown(found)
    assert "**not tested against**" in text
    assert "There is no interval" in text


def bare_results(rows, comparisons=(), **changes):
    """What the text needs of results; rows: (name, kind, mean); comparisons: of the model with."""
    metric = changes.get("main_metric", "balanced_accuracy")
    spread = ({metric: 0.0}, {metric: (0.1, 0.9)})
    methods = [MethodResult(n, "h", kind, {metric: mean}, *spread, ()) for n, kind, mean in rows]
    return Results(
        **{"task": "t", "protocol": "p", "type": "classification", "target": "y"},
        **{"unit": "event", "metrics": (metric,), "main_metric": metric} | changes,
        cohort=CohortSummary(3, 3, 3, 3),
        rows=tuple(methods),
        comparisons=tuple(
            Comparison(
                "Brain-JEPA (h)",
                f"{name} (h)",
                metric,
                sum(bounds) / 2,
                bounds,
                p,
                "test" if name == "FC" else PICKED,
            )
            for name, bounds, p in comparisons
        ),
    )


def test_the_verdict_is_about_the_best_row_without_a_trained_encoder():
    """Far above FC and below the raw clip is no success."""
    rows = [("Brain-JEPA", "model", 0.9), ("FC", "baseline", 0.7)]
    raw, control = ("Raw clip (whole)", "baseline", 0.94), ("Brain-JEPA, held", "control", 0.99)
    above, below = ("FC", (0.1, 0.3), 0.002), ("Raw clip (whole)", (-0.07, -0.01), 0.01)
    text = results_markdown(bare_results([*rows, raw, control], [above, below]))
    worse = "**worse than** Raw clip (whole) (h), the best row without a trained encoder ("
    assert worse + "Balanced accuracy -0.040, -0.070 to -0.010, p 0.010, paired)." in text
    assert "the best on these very people" in text
    assert "**better than** connectivity within the event's patch (" in text
    text = results_markdown(bare_results(rows, [above], unit="person"))
    assert "**better than** plain functional connectivity, the best row without a trained" in text
    unclear = [("FC", (0.01, 0.3), 0.08)]
    text = results_markdown(bare_results(rows, unclear))
    assert "**on the border of being told apart from** connectivity" in text
    assert "Interval and test disagree" in text
    errors = [("Brain-JEPA", "model", 0.9), ("FC", "baseline", 1.0)]
    lower = [("FC", (-0.2, -0.05), 0.001)]
    assert "**better than**" in results_markdown(bare_results(errors, lower, main_metric="mse_raw"))


def test_the_model_is_compared_with_fc_its_untrained_copy_and_the_best_baseline():
    rng = np.random.default_rng(0)
    cohort = make_cohort(np.arange(100) % 2, classes=("F", "M"))
    config = config_of()
    problems = problems_of(cohort, config)

    def method(name, kind, strength, representation, head="LARS"):
        scores = [HeadResult(noisy_scores(cohort, strength, int(rng.integers(99))), {})] * 3
        return FittedMethod(name, head, kind, scores, representation)

    methods = [
        method("Brain-JEPA", "model", 2.0, "model"),
        method("FC", "baseline", 1.0, "fc", "logistic"),
        method("Untrained encoder", "baseline", 0.5, "random_weights"),
        method("Raw clip", "baseline", 3.0, "raw_clip"),
    ]
    rows, comparisons = score_rows(cohort, problems, methods, config)
    found = {(c.method, c.reference): c for c in comparisons}
    model = "Brain-JEPA (LARS)"
    best = found[model, "Raw clip (LARS)"]
    assert "picked as the best on these test people" in best.test
    assert {reference for method, reference in found if method == model} == {
        "FC (logistic)", "Untrained encoder (LARS)", "Raw clip (LARS)",
    }  # fmt: skip
    assert {method for method, reference in found if reference == "FC (logistic)"} == {
        model, "Untrained encoder (LARS)", "Raw clip (LARS)",
    }  # fmt: skip
    metric = "balanced_accuracy"
    assert best.difference == pytest.approx(rows[0].mean[metric] - rows[3].mean[metric])
    assert all(0 < c.p <= 1 for c in comparisons)


def test_families_are_left_out_together():
    """Twins who are alike in everything count once: as wide an interval as of one of each."""
    y = np.repeat(np.arange(60) % 2, 2)
    cohort = make_cohort(y, classes=("F", "M"))
    twins = dataclasses.replace(
        cohort, examples=cohort.examples.assign(group=np.repeat([f"f{i}" for i in range(60)], 2))
    )
    p = np.repeat(np.random.default_rng(0).random(60), 2)
    method = [FittedMethod("Brain-JEPA", "h", "model", [HeadResult(np.stack([1 - p, p], 1), {})])]
    config = config_of()
    split = Split(np.arange(40), np.arange(40, 60), np.arange(60, 120))
    widths = []
    for one in (cohort, twins):
        problem = Problem(one, split, make_target(one, split), config.metric, 0)
        rows, _ = score_rows(one, [problem], method, config)
        widths.append(np.ptp(rows[0].interval["balanced_accuracy"]))
    assert widths[1] == pytest.approx(np.sqrt(2) * widths[0], rel=0.1)


def test_a_head_that_calls_everyone_the_same_is_said_to(tmp_path):
    cohort = make_cohort(np.arange(100) % 2, classes=("F", "M"))
    config = config_of()
    problems = problems_of(cohort, config)
    p = 0.4 * np.random.default_rng(0).random(100)
    results = [HeadResult(np.stack([1 - p, p], axis=1), {})] * 3
    rows = [FittedMethod("Brain-JEPA", "h", "model", results)]
    report = write_report(tmp_path, config, cohort, problems, rows, CheckpointInfo())
    assert report.rows[0].notes == ("predicts F for everyone in 3 of 3 runs",)
    low, high = report.rows[0].interval["balanced_accuracy"]
    assert low < 0.4 < 0.6 < high
    assert "predicts F for everyone" in (tmp_path / "results.md").read_text()


def test_markdown_names_everyone_and_the_published_number(tmp_path):
    two_class_report(tmp_path)
    text = (tmp_path / "results.md").read_text()
    for expected in ("Brain-JEPA", "FC", "Majority class", "0.8152", "called M", "blr 0.1"):
        assert expected in text
    header = next(line for line in text.splitlines() if line.startswith("| Method"))
    assert header.index("Balanced accuracy") < header.index("95 % interval") < header.index("AUROC")


def test_regression_is_reported_in_both_units(tmp_path):
    y = np.random.default_rng(0).normal(60, 10, 100)
    cohort = make_cohort(y)
    config = config_of("regression")
    problems = problems_of(cohort, config)
    target = problems[0].target
    rng = np.random.default_rng(1)
    results = [HeadResult(target.y + rng.normal(size=100), {}) for _ in problems]
    mean = FittedMethod("Mean", "none", "baseline", [HeadResult(np.zeros(100), {})] * 3)
    rows = [FittedMethod("Brain-JEPA", "ridge", "model", results), mean]
    report = write_report(tmp_path, config, cohort, problems, rows, CheckpointInfo())
    text = (tmp_path / "results.md").read_text()
    assert "| n/a " in text  # the mean correlates with nothing
    assert "n/a: not defined" in text
    test = problems[0].split.test
    expected = regression_metrics(target.y[test], results[0].scores[test], target.scale)
    assert report.rows[0].runs[0].metrics == pytest.approx(expected)
    predictions = pd.read_csv(tmp_path / "predictions.tsv", sep="\t")
    first = predictions.query("method == 'Brain-JEPA' and seed == 0")
    error = first["predicted"] - first["target"]
    assert (error**2).mean() == pytest.approx(expected["mse_raw"], rel=1e-4)
    assert not (tmp_path / "metrics.jsonl").exists()  # nothing was trained by epochs
    assert (tmp_path / "figure.png").exists()


def test_errors_of_targets_that_are_not_normalised_are_not_called_z(tmp_path):
    y = np.random.default_rng(0).normal(60, 10, 100)
    cohort = make_cohort(y)
    config = config_of("regression")
    config.data.label_normalization = False
    splits = [problem.split for problem in problems_of(cohort, config)]
    target = make_target(cohort, splits[0], config.data.label_normalization)
    problems = [Problem(cohort, split, target, config.metric, i) for i, split in enumerate(splits)]
    rows = [FittedMethod("Brain-JEPA", "ridge", "model", [HeadResult(y + 3, {"alpha": 1.0})] * 3)]
    report = write_report(tmp_path, config, cohort, problems, rows, CheckpointInfo())
    assert report.rows[0].mean["mse"] == pytest.approx(9)
    text = (tmp_path / "results.md").read_text()
    header = next(line for line in text.splitlines() if line.startswith("| Method"))
    assert [cell.strip() for cell in header.split("|")][3] == "MSE"
    assert header.count("MSE") == header.count("MAE") == 1
    assert "without the test people, by MSE:" in text


def test_three_classes(tmp_path):
    y = np.arange(90) % 3
    cohort = make_cohort(y, classes=("a", "b", "c"))
    config = config_of()
    problems = problems_of(cohort, config)
    scores = np.random.default_rng(0).dirichlet(np.ones(3), 90) + np.eye(3)[y]
    rows = [FittedMethod("Brain-JEPA", "LARS", "model", [HeadResult(scores / 2, {})] * 3)]
    results = write_report(tmp_path, config, cohort, problems, rows, CheckpointInfo())
    assert "f1" not in results.metrics
    assert results.rows[0].mean["auroc"] > 0.8


def test_history_has_a_line_per_epoch_and_valid_json(tmp_path):
    two_class_report(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert lines[2] == {
        "method": "Brain-JEPA", "head": "LARS", "seed": 2, "fold": None, "epoch": 1,
        "train_loss": 0.7, "valid_loss": None, "valid_balanced_accuracy": 0.5,
    }  # fmt: skip


def test_small_texts():
    assert mean_sd_text(0.5, np.nan) == "0.500"
    assert mean_sd_text(0.5, 1e-17) == "0.500"  # every seed gave the same
    assert mean_sd_text(0.5, 0.1) == "0.500 (0.100)"
    assert mean_sd_text(None, None) == "n/a"
    assert interval_text([0.1, None]) == "n/a"
    assert without_nan({"a": [np.float64("nan"), np.int64(2)], "b": np.inf}) == {
        "a": [None, 2],
        "b": None,
    }
    table = markdown_table(["a", "bb"], [["ccc", "d"]]).splitlines()
    assert table == ["| a   | bb |", "|-----|----|", "| ccc | d  |"]
