"""Identification: as Finn et al., z-scored over people, and that nothing is found in nothing."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from downstream_tasks.cohort.paired_runs import paired_runs
from downstream_tasks.config_checks import task_from_dict
from downstream_tasks.main_fingerprint import DESIGN
from downstream_tasks.scoring.fingerprint import identify, score_hits, z_score
from downstream_tasks.scoring.intervals import metrics_of, summarise


def test_identification_is_by_plain_correlation():
    rng = np.random.default_rng(0)
    common = 3 * rng.normal(size=30)
    first, second = (common + rng.normal(size=(8, 30)) for _ in range(2))
    r = np.array([[stats.pearsonr(a, b).statistic for b in second] for a in first])
    forward, backward = identify(first, second)
    np.testing.assert_array_equal(forward, r.argmax(axis=1))
    np.testing.assert_array_equal(backward, r.argmax(axis=0))
    z_forward, _ = identify(*np.split(z_score(np.r_[first, second], 8), 2))
    assert (z_forward != forward).any()


def test_z_scored_every_feature_counts_alike_whatever_its_unit():
    """A feature that varies a thousand times more, and means nothing, must not decide."""
    rng = np.random.default_rng(0)
    person = rng.normal(size=(20, 30))
    first, second = (person + 0.2 * rng.normal(size=(20, 30)) for _ in range(2))
    for run in (first, second):
        run[:, :3] = 1000 * rng.normal(size=(20, 3))
    assert (identify(first, second)[0] != np.arange(20)).any()
    forward, backward = identify(*np.split(z_score(np.r_[first, second], 20), 2))
    np.testing.assert_array_equal(forward, np.arange(20))
    np.testing.assert_array_equal(backward, np.arange(20))


def test_rounding_is_no_fingerprint():
    rng = np.random.default_rng(0)
    noise = 1 + 1e-7 * rng.normal(size=(5, 8))  # the same for everyone, as float32 gives it
    for first, second in ((noise, noise), np.split(z_score(np.r_[noise, noise], 5), 2)):
        forward, backward = identify(first, second)
        assert not forward.any()
        assert not backward.any()


def test_the_interval_is_of_people_both_ways_and_of_families():
    matched = np.array([0, 1, 2, 3, 4, 5, 6, 7, 0, 0])  # eight of ten, both ways
    runs = score_hits(matched, matched, np.arange(10))
    assert metrics_of(runs["identification"])["accuracy"] == pytest.approx(0.8)
    both, one = (summarise([runs[m]], DESIGN)["accuracy"] for m in ("identification", "forward"))
    assert both == pytest.approx(one)  # the second way says nothing new here: ten people, not 20
    families = score_hits(matched, matched, np.arange(10) // 2)
    assert np.ptp(summarise([families["forward"]], DESIGN)["accuracy"]) > 1.2 * np.ptp(one)
    everyone = score_hits(np.arange(10), np.arange(10), np.arange(10))
    low, high = summarise([everyone["identification"]], DESIGN)["accuracy"]
    assert low < 0.75
    assert high == 1


def test_families_stay_together_however_their_column_is_spelt():
    runs = pd.DataFrame(
        {
            "participant_id": np.repeat(["a", "b", "c"], 2),
            "run": ["01", "02"] * 3,
            "split": "test",
            "Family_ID": np.repeat(["x", "x", "y"], 2),
        }
    )
    folder = SimpleNamespace(runs=runs, path=Path("data"), rows=lambda **_: runs.index.to_numpy())
    config = task_from_dict({"protocol": "fingerprint", "data": {"data_path": "data"}}, "test")
    assert paired_runs(folder, config).unit_groups.tolist() == ["a", "a", "c"]
