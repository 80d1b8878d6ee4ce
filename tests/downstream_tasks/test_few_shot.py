"""Decoding from few labelled events, from the task to its table."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from downstream_tasks import main_linearprobe
from downstream_tasks.config_checks import task_from_dict
from downstream_tasks.evaluation import prepare
from downstream_tasks.features.table import Representations
from downstream_tasks.heads.estimators import fit_head
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import CPU, Rehearsal

DRAWS = 6


@pytest.fixture
def few(rehearsal: Rehearsal, tmp_path):
    """A function of keys of sections: the task, by default 1 event of each class of 3 people."""

    def few(evaluation=None, heads=None, split=None, **keys):
        values = {
            "name": "few",
            "protocol": "logistic",
            "output_root": str(tmp_path),
            "data": {
                "data_path": str(rehearsal.data),
                "target": "state",
                "unit": "event",
                "num_workers": 0,
                "normalization": "none",
            },
            "model": {"load_path": str(rehearsal.checkpoint)},
            "heads": {"selection": "fixed", "C": [0.5]} | (heads or {}),
            "split": split or {},
            "evaluation": {
                "num_seed": 1,
                "metric": "auroc",
                "n_exchanges": 20,
                "few_shot": {"events": 1, "people": 3, "draws": DRAWS},
                "stack": [],
                "baselines": ["patch_mean", "random_weights"],
            }
            | (evaluation or {}),
        }
        return task_from_dict(values | keys, "a test")

    return few


def test_each_draw_is_fitted_and_all_are_tested_on_the_same_people(few, passes):
    config = few()
    results = main_linearprobe.run(config, CPU)
    evaluation = prepare(config)
    cohort, problems = evaluation.cohort, evaluation.problems
    # The model and its untrained copy see every clip once, whatever the number of draws.
    assert len(passes) == 2 * len(cohort.y)
    assert [problem.name for problem in problems] == [f"seed0_draw{d}" for d in range(DRAWS)]
    assert results.design == "one_split"
    assert {split.train for split in results.splits} == {3}
    assert {split.valid for split in results.splits} == {0}
    representations = Representations(config, cohort, evaluation.pretrained, CPU)
    expected = {}
    for name in ("model", "patch_mean", "random_weights"):
        features = np.asarray(representations.features(name))
        expected[name] = [by_hand(features, problem, cohort.y) for problem in problems]
    for row in results.rows:
        name = {"model": "model"}.get(row.kind, row.representation)
        aucs = [run.metrics["auroc"] for run in row.runs]
        np.testing.assert_allclose(aucs, expected[name], atol=1e-6)
        assert row.mean["auroc"] == pytest.approx(np.mean(expected[name]))
        low, high = row.interval["auroc"]
        assert low < row.mean["auroc"] < high
        assert row.runs[0].chosen == {}
    against = {c.reference: c for c in results.comparisons}
    difference = np.mean(expected["model"]) - np.mean(expected["random_weights"])
    untrained = against["Untrained encoder (logistic)"]
    assert untrained.difference == pytest.approx(difference)
    assert np.isfinite([*untrained.interval, untrained.p]).all()
    assert results.settings["heads"] == "nothing chosen, C 0.5 per feature"
    assert "6 draws of 1 events of every class of 3 of 24" in results.settings["labelled"]


def by_hand(features: np.ndarray, problem, y: np.ndarray) -> float:
    """AUROC of a logistic regression on the standardised labelled events."""
    train, test = problem.split.train, problem.split.test
    scaler = StandardScaler().fit(features[train])
    head = LogisticRegression(C=0.5 / features.shape[1], max_iter=5000)
    head.fit(scaler.transform(features[train]), y[train])
    return roc_auc_score(y[test], head.decision_function(scaler.transform(features[test])))


def test_stored_heads_and_splits_are_scored_again(few):
    config = few()
    first = main_linearprobe.run(config, CPU)
    assert [p.name for p in config.output_dir.glob("split_*.tsv")] == ["split_seed0.tsv"]
    again = main_linearprobe.run(config, CPU, evaluate=True)
    assert again.rows[0].mean["auroc"] == pytest.approx(first.rows[0].mean["auroc"], abs=1e-6)
    stored = json.loads((config.output_dir / "results.json").read_text())
    assert len(stored["rows"][0]["runs"]) == DRAWS
    predicted = pd.read_csv(config.output_dir / "predictions.tsv", sep="\t")
    assert sorted(set(predicted["draw"])) == list(range(DRAWS))


def test_a_wide_representation_is_penalised_as_a_narrow_one_is(few, rehearsal):
    """Features repeated ten times say nothing new: the fixed penalty is one per feature."""
    config = few()
    problem = prepare(config).problems[0]
    features = torch.randn(len(problem.target.y), 7, generator=torch.manual_seed(0)).numpy()
    once = fit_head("logistic", features, problem, config.heads).scores
    tenfold = fit_head("logistic", np.tile(features, 10), problem, config.heads).scores
    np.testing.assert_allclose(once, tenfold, atol=1e-4)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"heads": {"selection": "cv"}}, r"heads.selection is 'cv'; allowed: fixed with"),
        ({"heads": {"C": [0.1, 1.0]}}, "several values of a setting"),
        ({"evaluation": {"stack": ["patch_mean"]}}, "evaluation.stack"),
        ({"evaluation": {"num_seed": 2}}, "evaluation.num_seed is 2; allowed: 1"),
        ({"evaluation": {"train_sizes": [4]}}, "evaluation.train_sizes"),
        ({"split": {"source": "cv"}}, "split.source is 'cv'; allowed: folder, or random"),
        ({"protocol": "linear_probe"}, "protocol"),
        ({"evaluation": {"few_shot": {"event": 2}}}, "Valid here: events, people, draws"),
    ],
)
def test_what_few_events_cannot_do_is_said_before_anything_runs(few, keys, said):
    with pytest.raises(UserError, match=said):
        few(**keys)
