"""Studies end to end, through the frozen protocols on forty synthetic people."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from downstream_tasks import main_linearprobe
from downstream_tasks.config_checks import task_from_dict
from downstream_tasks.evaluation import pose_problems
from downstream_tasks.heads.result import FittedMethod, HeadResult
from downstream_tasks.report.results import CurvePoint, Results
from downstream_tasks.studies.figures import draw_learning_curve
from downstream_tasks.studies.methods import Method
from downstream_tasks.studies.run import run_studies
from tests.downstream_tasks.conftest import make_cohort

CPU = torch.device("cpu")


def config_of(files, out, protocol="logistic", **evaluation):
    data, checkpoint = files
    keys = {"num_seed": 2, "n_exchanges": 20, "baselines": ["fc", "random_weights"]}
    return task_from_dict(
        {
            "name": "small",
            "protocol": protocol,
            "output_root": str(out),
            "data": {"data_path": str(data), "target": "sex", "num_workers": 0},
            "model": {"load_path": str(checkpoint)},
            "evaluation": keys | evaluation,
            "linear_probe": {"epochs": 2, "batch_size": 8, "grid_blr": [1.0]},
            "attentive_probe": {"epochs": 1, "lr": [1e-3], "warmup_epochs": 0},
            "heads": {"folds": 2, "C": [0.01, 1.0]},
        },
        "test",
    )


@pytest.mark.parametrize("protocol", ["logistic", "linear_probe", "attentive_probe"])
def test_permuted_labels_never_reach_the_encoder(files, tmp_path, passes, protocol):
    config = config_of(files, tmp_path, protocol, n_permutations=9, baselines=["fc"])
    results = main_linearprobe.run(config, CPU)
    assert len(passes) == 40  # everyone once, whatever the labels
    model, fc = results.permutations
    assert model.method == results.rows[0].label
    assert fc.method == "FC (logistic)"
    assert fc.p == 1 / 10  # the effect is in the connectivity
    assert fc.observed == pytest.approx(results.fc.mean["balanced_accuracy"])
    assert 0.3 < fc.null_mean < 0.7
    assert Results.read(config.output_dir / "results.json").permutations == results.permutations
    text = (config.output_dir / "results.md").read_text()
    assert "Labels permuted 9 times" in text


def test_new_labels_get_new_splits(files, tmp_path):
    """Splits that are drawn are stratified by the labels: those of permuted ones, too."""
    config = config_of(files, tmp_path, n_permutations=10)
    cohort = make_cohort((np.arange(50) % 5 == 0).astype(int), classes=("a", "b"))
    seen = []

    def fit(problem):
        seen.append(problem)
        return HeadResult(np.tile([0.5, 0.5], (50, 1)), {})

    problems = pose_problems(config, cohort)
    rows = [FittedMethod("x", "y", "model", list(map(fit, problems)))]
    run_studies(config, problems, rows, [Method("x", "y", fit)], [])
    assert len(seen) == 2 + 10 * 2
    for problem in seen:
        assert problem.cohort.y[problem.split.test].sum() == 2  # of ten people
    assert len({problem.split.test.tobytes() for problem in seen}) > 5


def test_the_log_says_what_a_permutation_test_costs(files, tmp_path):
    config = config_of(files, tmp_path, n_permutations=3)
    main_linearprobe.run(config, CPU)
    log = (config.output_dir / "log.txt").read_text()
    assert "3 permutations x 2 runs x 2 rows = 12 fits" in log
    assert "by the time of the first permutation" in log


@pytest.mark.parametrize(
    ("protocol", "methods"),
    [
        ("logistic", ["Brain-JEPA", "FC", "Untrained encoder"]),
        ("linear_probe", ["Brain-JEPA", "FC", "FC", "Untrained encoder"]),
        ("attentive_probe", ["Brain-JEPA", "FC", "Untrained encoder"]),
    ],
)
def test_a_learning_curve_of_model_fc_and_untrained(files, tmp_path, passes, protocol, methods):
    config = config_of(files, tmp_path, protocol, train_sizes=[6, 0.5, 1.0], train_draws=3)
    results = main_linearprobe.run(config, CPU)
    assert len(passes) == 2 * 40  # the encoder and its untrained copy
    points = results.learning_curve
    assert [p.name for p in points] == [name for name in methods for _ in range(3)]
    assert [p.n_people for p in points[:3]] == [6, 12, 24]
    assert [p.n_draws for p in points[:3]] == [6, 6, 2]  # 2 runs; everyone once in each
    everyone = points[2]
    assert everyone.mean == pytest.approx(results.rows[0].mean[results.main_metric])
    table = pd.read_csv(config.output_dir / "learning_curve.tsv", sep="\t")
    assert len(table) == len(methods) * (6 + 6 + 2)
    fc = table.query("method == 'FC' and head == 'logistic'").groupby("people")
    few, _, all_of_them = fc["balanced_accuracy"].mean()
    assert few < all_of_them
    assert (config.output_dir / "learning_curve.png").stat().st_size > 0
    stored = json.loads((config.output_dir / "results.json").read_text())["learning_curve"]
    assert len(stored) == len(points)
    assert "Learning curve" in (config.output_dir / "results.md").read_text()


def test_the_curve_is_drawn_over_people_on_a_log_axis():
    points = [
        CurvePoint("Brain-JEPA", "ridge", size, n, 5, mean, 0.1, (mean - 0.1, mean + 0.2))
        for size, n, mean in ((10, 10.0, 0.5), (1.0, 100.0, 0.8))
    ]
    axes = Figure().subplots()
    draw_learning_curve(axes, points, "auroc")
    assert axes.get_xscale() == "log"
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [10, 100])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.5, 0.8])
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.4)
    assert band[:, 1].max() == pytest.approx(1.0)


def test_reliability_of_every_row_is_in_the_results(files, tmp_path):
    results = main_linearprobe.run(config_of(files, tmp_path), CPU)
    for row in results.rows:
        assert sum(point.n for point in row.reliability) == 2 * 8  # test people of both runs
    assert {"brier", "ece"} <= set(results.rows[0].mean)
