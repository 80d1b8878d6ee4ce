"""The rehearsal cohorts: their columns, and effects that are there when asked for and only then."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from src.datasets.prepare.population import FAMILIES
from src.utils.errors import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_synthetic_cohort.py"
sys.path.insert(0, str(SCRIPT.parent))

from make_synthetic_cohort import (  # noqa: E402  (a script, not part of a package)
    PRESETS,
    TRAITS,
    draw_gains,
    draw_people,
    make_cohort,
)

SMALL = {"n_rois": 30}


def small(name, **changes):
    return dataclasses.replace(PRESETS[name], **{"n": 40, "frames": 60, **changes})


def fc_scores(folder, classes, continuous):
    """Cross-validated balanced accuracy and Pearson r of linear models on FC."""
    edges = np.triu_indices(folder.n_rois, 1)
    fc = [np.arctanh(np.corrcoef(folder.series(i))[edges]) for i in range(len(folder.runs))]
    x = StandardScaler().fit_transform(fc)
    alphas = np.logspace(0, 5, 11)
    scores = {}
    for name in classes:
        y = folder.runs[name].to_numpy()
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        model = RidgeClassifierCV(alphas, class_weight="balanced")
        scores[name] = balanced_accuracy_score(y, cross_val_predict(model, x, y, cv=folds))
    for name in continuous:
        y = folder.runs[name].to_numpy(float)
        folds = KFold(5, shuffle=True, random_state=0)
        scores[name] = np.corrcoef(y, cross_val_predict(RidgeCV(alphas), x, y, cv=folds))[0, 1]
    return scores


def test_strong_effects_are_found_and_absent_ones_are_not(tmp_path):
    preset = small("custom", n=160, frames=300)
    classes = ("sex", "diagnosis", "amyloid", "conversion", "depression")
    continuous = ("age", "neuroticism", "flanker")
    strong = make_cohort(tmp_path / "strong", preset, n_rois=40, effect=2)
    scores = fc_scores(strong, classes, continuous)
    assert scores["sex"] > 0.85
    assert scores["age"] > 0.8
    assert min(scores[name] for name in classes) > 0.65
    assert scores["flanker"] > 0.4
    none = make_cohort(tmp_path / "none", preset, n_rois=40, effect=0)
    scores = fc_scores(none, classes, continuous)
    assert max(scores[name] for name in classes) < 0.63
    assert max(scores[name] for name in continuous) < 0.25


@pytest.mark.parametrize("name", PRESETS)
def test_presets(tmp_path, name):
    folder = make_cohort(tmp_path / name, small(name), **SMALL)
    runs = folder.runs
    preset = PRESETS[name]
    assert len(runs) == 40
    assert set(runs["tr"]) == {preset.tr}
    assert runs["split"].value_counts().to_dict() == {"train": 24, "valid": 8, "test": 8}
    assert runs["age"].between(preset.age[2], preset.age[3]).all()
    for column, share in preset.positive.items():
        values = runs[column].dropna()
        assert set(values) <= set(TRAITS[column].classes)
        if column not in preset.known:
            assert (values == TRAITS[column].classes[1]).sum() == round(40 * share)


def test_unknown_values_are_missing(tmp_path):
    preset = small("adni", known={"amyloid": 25})
    runs = make_cohort(tmp_path / "a", preset, **SMALL).runs
    assert runs["amyloid"].isna().sum() == 15
    assert runs["diagnosis"].notna().all()


def test_families_stay_in_one_split_and_sites_are_named(tmp_path):
    folder = make_cohort(tmp_path / "a", small("hca"), **SMALL, families=True, sites=3, runs=2)
    runs = folder.runs
    assert len(runs) == 80
    families = runs.groupby("family_id")
    assert families["split"].nunique().max() == 1
    assert families["participant_id"].nunique().max() > 1
    assert set(runs["site"]) == {"site-1", "site-2", "site-3"}


def test_relatives_and_people_of_a_site_are_alike():
    preset = small("hca", n=3000)
    rng = np.random.default_rng(0)
    people, shift = draw_people(preset, rng, families=True, sites=2)
    gains = draw_gains(people, 0 * shift, 0.0, rng).reshape(3000, -1)
    first = np.flatnonzero(people["family_id"].duplicated(keep="last"))
    relatives = (gains[first] * gains[first + 1]).mean()
    strangers = (gains[:-1500] * gains[1500:]).mean()
    assert relatives > strangers + 0.25 * gains.var()
    at = people["site"] == "site-1"
    apart = gains[at].mean(0) - gains[~at].mean(0)
    assert apart.std() > 3 * gains.std() / np.sqrt(1000)


def test_a_trait_moves_people_along_its_direction_only():
    preset = small("hca", n=2000)
    rng = np.random.default_rng(0)
    people, shift = draw_people(preset, rng, families=False, sites=1)
    flat = shift.reshape(2000, -1)
    female = (people["sex"] == "F").to_numpy()
    difference = (flat[female].mean(0) - flat[~female].mean(0)).reshape(len(FAMILIES), -1)
    expected = TRAITS["sex"].size * TRAITS["sex"].direction
    np.testing.assert_allclose(difference, expected, atol=0.3)
    assert np.linalg.norm(TRAITS["sex"].direction) == pytest.approx(1)
    assert "family_id" not in people
    assert "site" not in people


def test_same_arguments_same_bytes(tmp_path, capsys):
    a = make_cohort(tmp_path / "a", small("hca"), **SMALL)
    b = make_cohort(tmp_path / "b", small("hca"), **SMALL)
    np.testing.assert_array_equal(a.flat, b.flat)
    assert (a.path / "participants.tsv").read_bytes() == (b.path / "participants.tsv").read_bytes()
    capsys.readouterr()
    make_cohort(tmp_path / "a", small("hca"), **SMALL)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="already holds a data set"):
        make_cohort(tmp_path / "a", small("hca"), **SMALL, effect=0.5)


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"n": 2}, {}, "--n 2"),
        ({"frames": 1}, {}, "--frames 1"),
        ({"tr": 0.0}, {}, "--tr 0.0"),
        ({}, {"effect": -1.0}, "--effect -1.0"),
        ({}, {"sites": 0}, "--sites 0"),
        ({}, {"group_fc": "brainspace"}, "n_rois 450"),
    ],
)
def test_impossible_settings(tmp_path, changes, settings, message):
    with pytest.raises(UserError, match=message):
        make_cohort(tmp_path / "a", small("hca", **changes), **{**SMALL, **settings})
    assert not (tmp_path / "a").exists()


def test_command_line(tmp_path):
    command = [sys.executable, str(SCRIPT), "adni", "--out", str(tmp_path / "a"), "--n", "20"]
    command += ["--frames", "30"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "20 people, 20 runs x 450 ROIs x 30 frames, TR 3.0 s" in done.stdout
    assert "diagnosis: MCI 15, NC 5, missing 0" in done.stdout
