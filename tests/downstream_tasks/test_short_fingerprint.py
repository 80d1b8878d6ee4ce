"""Fingerprinting by single clips of runs."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from downstream_tasks import main_fingerprint
from downstream_tasks.config_checks import task_from_dict
from downstream_tasks.report.checkpoints import compare_checkpoints
from scripts.ablation.table import person_scores
from src.datasets.folder import DataFolder
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import CPU, labelled_folder, write_checkpoint

CLIPS, FRAMES = 3, 16


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    data = labelled_folder(folder / "data", people=20, frames=60, runs=2)
    return data, write_checkpoint(folder / "jepa-latest.pth.tar", data, (12, FRAMES))


@pytest.fixture
def task(files, tmp_path):
    """A function of keys of the sections ``fingerprint`` and ``evaluation``."""

    def task(out="out", evaluation=None, **fingerprint):
        values = {
            "name": "short",
            "protocol": "fingerprint",
            "output_root": str(tmp_path / out),
            "data": {"data_path": str(files[0]), "num_workers": 0},
            "model": {"load_path": str(files[1])},
            "fingerprint": {"clips": "apart", "metric": "same_person_auc"} | fingerprint,
            "evaluation": {"clips": CLIPS, "n_exchanges": 20, "baselines": ["log_sd"]}
            | (evaluation or {}),
        }
        return task_from_dict(values, "a test")

    return task


def by_hand(data, z_scored: bool) -> tuple[list[float], list[float]]:
    """AUC and rate of identification of every pair of clips by the log SD of ROIs."""
    folder = DataFolder(data)
    starts = np.linspace(0, 60 - FRAMES, CLIPS).round().astype(int)
    parts = {"1": [], "2": []}
    for row, run in enumerate(folder.runs["run"]):
        series = folder.series(row).astype(np.float64)
        parts[run[-1]].append([np.log(series[:, s : s + FRAMES].std(axis=1)) for s in starts])
    first, second = (np.array(part) for part in parts.values())  # [people, clips, ROIs]
    aucs, rates = [], []
    for i in range(CLIPS):
        for j in range(CLIPS):
            a, b = first[:, i], second[:, j]
            if z_scored:
                a, b = ((x - x.mean(axis=0)) / x.std(axis=0) for x in (a, b))
            r = np.corrcoef(a, b)[: len(a), len(a) :]
            aucs.append(roc_auc_score(np.eye(len(a)).ravel(), r.ravel()))
            own = np.arange(len(a))
            rates.append(np.mean(np.r_[r.argmax(axis=1) == own, r.argmax(axis=0) == own]))
    return aucs, rates


def test_every_clip_names_its_person_by_itself(files, task):
    config = task()
    results = main_fingerprint.run(config, CPU)
    for row in results.rows:
        if row.representation != "log_sd":
            continue
        aucs, rates = by_hand(files[0], row.head == main_fingerprint.Z_SCORED)
        np.testing.assert_allclose([run.metrics["same_person_auc"] for run in row.runs], aucs)
        np.testing.assert_allclose([run.metrics["identification"] for run in row.runs], rates)
        assert row.mean["same_person_auc"] == pytest.approx(np.mean(aucs))
        for metric in ("same_person_auc", "identification"):
            low, high = row.interval[metric]
            assert low < row.mean[metric] < high
    best = next(c for c in results.comparisons if "log SD" in c.reference)
    means = {row.label: row.mean["same_person_auc"] for row in results.rows}
    assert best.difference == pytest.approx(means[best.method] - means[best.reference])
    assert best.metric == results.main_metric == "same_person_auc"
    assert results.rows[-1].mean["same_person_auc"] == 0.5  # chance
    assert "AUC, same person" in (config.output_dir / "results.md").read_text()
    predicted = pd.read_csv(config.output_dir / "predictions.tsv", sep="\t")
    assert len(predicted) == 4 * CLIPS**2 * 20  # two rows of either representation


def test_several_untrained_networks_are_averaged(task):
    baselines = {"baselines": ["random_weights"]}
    several = main_fingerprint.run(task("a", baselines, untrained_seeds=2), CPU)
    alone = [
        main_fingerprint.run(task(f"b{seed}", baselines | {"seed": seed}), CPU) for seed in (0, 1)
    ]
    for place in (2, 3):  # both heads
        row, each = several.rows[place], [results.rows[place] for results in alone]
        assert row.representation == "random_weights"
        assert len(row.runs) == 2 * CLIPS**2
        for metric in ("same_person_auc", "identification"):
            expected = np.mean([one.mean[metric] for one in each])
            assert row.mean[metric] == pytest.approx(expected)
        assert each[0].mean != each[1].mean
    options = {"untrained_seeds": 2, "metric": "identification"}
    by_rate = main_fingerprint.run(task("c", baselines, **options), CPU)
    model, _, row, _, _ = by_rate.rows
    (found,) = [c for c in by_rate.comparisons if (c.method, c.reference)
                == (model.label, row.label)]  # fmt: skip
    expected = model.mean["identification"] - row.mean["identification"]
    assert found.difference == pytest.approx(expected)


def test_scores_of_people_are_means_over_clips_and_networks(files, task):
    config = task(evaluation={"baselines": ["log_sd", "random_weights"]}, untrained_seeds=2)
    results = main_fingerprint.run(config, CPU)
    table = pd.read_csv(config.output_dir / "people.csv", dtype={"participant_id": str})
    assert table.groupby(["variant", "method"]).size().eq(20).all()
    means = table.groupby(["variant", "method"])["identification"].mean()
    for row in results.rows[:-1]:
        variant = "z_scored" if row.head == main_fingerprint.Z_SCORED else "correlation"
        found = means[variant, row.representation]
        assert found == pytest.approx(row.mean["identification"], abs=1e-6)
    of_one = table[(table["method"] == "log_sd") & (table["variant"] == "correlation")]
    aucs, _ = by_hand(files[0], z_scored=False)
    assert of_one["person_auc"].mean() == pytest.approx(np.mean(aucs), abs=0.05)
    scores = person_scores(config.output_dir)
    roles = dict(zip(scores["method"], scores["role"], strict=True))
    assert roles == {"model": "model", "random_weights": "untrained", "log_sd": "raw"}
    assert set(scores["metric"]) == {"identification", "person_auc"}


def test_one_clip_apart_is_the_centre_as_before(task):
    together = main_fingerprint.run(task("a", {"clips": 1}, clips="together"), CPU)
    apart = main_fingerprint.run(task("b", {"clips": 1}), CPU)
    assert [row.mean for row in apart.rows] == [row.mean for row in together.rows]


def test_test_people_only(files, task):
    results = main_fingerprint.run(task(people="test"), CPU)
    runs = DataFolder(files[0]).runs
    tested = set(runs.loc[runs["split"] == "test", "participant_id"])
    assert results.cohort.n_people == len(tested) < 20


def test_runs_without_room_for_the_clips(task):
    with pytest.raises(UserError, match=r"too short for 50 different clips; .* room for 45"):
        main_fingerprint.run(task(evaluation={"clips": 50}), CPU)


def test_two_checkpoints_are_compared_by_whom_they_identify(task):
    results = {}
    for name, level in (("a", "pooled"), ("b", "roi")):
        config = task(name, {"level": level})
        results[config.output_dir / "results.json"] = main_fingerprint.run(config, CPU)
    (pair,) = compare_checkpoints(results)
    assert pair.reason == ""
    assert pair.metric == "identification"
    a, b = (one.rows[0].mean["identification"] for one in results.values())
    assert pair.found.difference == pytest.approx(a - b)
