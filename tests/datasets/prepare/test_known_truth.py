"""People of known truth: each trait is where it should be, and nowhere else."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from scipy.linalg import solve_discrete_lyapunov
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from src.datasets.folder import DataFolder
from src.datasets.prepare.known_truth import (
    LATENT,
    TRAITS,
    KnownTruth,
    family_rotation,
    write_known_truth,
)
from src.utils.errors import UserError


@pytest.fixture(scope="module")
def truth() -> KnownTruth:
    return KnownTruth.draw(90, "brainspace", seed=0, effect=2.0)


def sources_of(person) -> np.ndarray:
    """Stationary covariance of the sources, solved for by scipy."""
    transition = person.rotation * person.persistence
    noise = person.rotation * np.sqrt(1 - person.persistence**2)
    return solve_discrete_lyapunov(transition, noise @ noise.T)


def test_the_sources_of_everyone_have_the_same_covariance(truth):
    people = [truth.person(i) for i in range(4)]
    for person in people:
        np.testing.assert_allclose(sources_of(person), np.eye(90), atol=1e-10)
        assert 0 < person.persistence.min() < person.persistence.max() < 1
    assert np.ptp([person.persistence.mean() for person in people]) > 0.01
    assert not np.allclose(people[0].rotation, people[1].rotation, atol=1e-3)


def lagged(series: np.ndarray, lag: int) -> np.ndarray:
    """Correlations of each ROI with each, so many frames later, ``[R, R]``."""
    z = (series - series.mean(1, keepdims=True)) / series.std(1, keepdims=True)
    n = z.shape[1] - lag
    return z[:, lag:] @ z[:, :n].T / n


def test_other_dynamics_and_switching_leave_fc_as_it_is(truth):
    """Two people who differ in these alone: FC within the sampling error, lagged FC far off."""
    one, other = truth.person(1), truth.person(2)
    other = dataclasses.replace(other, mixing=one.mixing, sd=one.sd)
    assert abs(one.switches - other.switches) > 0.01
    blocks, frames = 40, 1500
    runs = [
        person.run(np.random.default_rng(i), blocks * frames).reshape(90, blocks, frames)
        for i, person in enumerate((one, other))
    ]
    upper = np.triu_indices(90, 1)
    squares = []
    for lag in (0, 1):
        values = [[lagged(run[:, b], lag)[upper] for b in range(blocks)] for run in runs]
        mean, variance = np.mean(values, 1), np.var(values, 1, ddof=1) / blocks
        squares.append(float(((mean[0] - mean[1]) ** 2 / variance.sum(0)).mean()))
    assert squares[0] < 1.3  # the mean of a squared t statistic is 1 without a difference
    assert squares[1] > 3
    fc = np.mean([lagged(runs[0][:, b], 0) for b in range(blocks)], 0)
    np.testing.assert_allclose(fc, one.mixing @ one.mixing.T, atol=0.05)
    np.testing.assert_allclose(runs[0].reshape(90, -1).std(1), one.sd, rtol=0.1)


def window_power(series: np.ndarray) -> np.ndarray:
    """Covariance over windows of 8 frames of the log power of each ROI."""
    power = np.log(series.reshape(len(series), -1, 8).std(2))
    return np.cov(power)[np.triu_indices(len(series))]


def upper_fc(series: np.ndarray) -> np.ndarray:
    return np.arctanh(np.corrcoef(series)[np.triu_indices(len(series), 1)])


def test_each_trait_is_visible_to_its_statistic_alone(tmp_path):
    folder = write_known_truth(tmp_path / "people", train=300, valid=0)
    series = [np.asarray(folder.series(i), dtype=float) for i in range(300)]
    statistics = {
        "static": upper_fc,
        "dynamics": lambda x: np.diag(lagged(x, 1)),
        "switching": window_power,
        "amplitude": lambda x: np.log(x.std(1)),
    }
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 7, 15)))
    found = {}
    for name, statistic in statistics.items():
        table = np.array([statistic(x) for x in series])
        for trait in TRAITS:
            y = folder.runs[trait].to_numpy(float)
            found[name, trait] = r2_score(y, cross_val_predict(ridge, table, y, cv=5))
    for name in TRAITS:
        assert found[name, name] > 0.12, found
        # Persistence of an ROI sees a little of how its network's power comes and goes.
        limit = {("dynamics", "switching"): 0.18}
        others = [(name, trait) for trait in TRAITS if trait != name]
        assert all(found[pair] < limit.get(pair, 0.09) for pair in others), found
    assert found["static", "dynamics"] < 0.02  # FC knows nothing of it at all


def test_the_latent_is_standard_normal_and_predicts_as_well_as_stated(truth, tmp_path):
    latents = [truth.person(i).latent for i in range(400)]
    for trait in TRAITS:
        values = np.array([latent[trait] for latent in latents])
        assert abs(values.mean()) < 0.2
        assert 0.85 < values.std() < 1.15
    folder = write_known_truth(
        tmp_path / "a", train=0, valid=0, test=2000, n_rois=25, frames=2, group_fc="model",
        attainable=0.4,
    )  # fmt: skip
    for trait in TRAITS:
        y, latent = (folder.runs[name].to_numpy(float) for name in (trait, trait + LATENT))
        assert np.corrcoef(y, latent)[0, 1] ** 2 == pytest.approx(0.4, abs=0.06)
        assert y.std() == pytest.approx(1, abs=0.06)


def test_effect_is_the_spread_along_the_direction_of_a_trait():
    strong = KnownTruth.draw(30, "model", seed=0, effect=3.0)
    plain = dataclasses.replace(strong, effect=1.0)
    direction = strong.directions["amplitude"]
    assert np.linalg.norm(direction) == pytest.approx(1)
    for i in range(5):
        pair = [truth.person(i) for truth in (strong, plain)]
        log_sd = [np.log(person.sd / strong.population.sd[:, 0]) for person in pair]
        change = log_sd[0] - log_sd[1]
        indicator = strong.population.atlas.indicator
        expected = 0.15 * 2 * pair[0].latent["amplitude"] * indicator @ direction
        np.testing.assert_allclose(change, expected, atol=1e-12)
        assert pair[0].latent == pair[1].latent


def test_rotation_turns_one_family_towards_the_other():
    indicator = np.repeat(np.eye(3), 4, axis=0)
    turn = family_rotation(indicator, np.array([0.3, 0, 0]))
    np.testing.assert_allclose(turn @ turn.T, np.eye(12), atol=1e-12)
    means = indicator / 2
    by_hand = np.eye(3)
    by_hand[:2, :2] = [[np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), np.cos(0.3)]]
    np.testing.assert_allclose(means.T @ turn @ means, by_hand, atol=1e-12)


SMALL = {"n_rois": 30, "frames": 40, "group_fc": "model"}


def test_same_seed_same_bytes_and_sizes_nest(tmp_path):
    first = write_known_truth(tmp_path / "a", train=5, valid=2, **SMALL)
    again = write_known_truth(tmp_path / "b", train=5, valid=2, **SMALL)
    more = write_known_truth(tmp_path / "c", train=9, valid=2, test=3, **SMALL)
    other = write_known_truth(tmp_path / "d", train=5, valid=2, **SMALL, seed=1)
    np.testing.assert_array_equal(first.flat, again.flat)
    assert not np.array_equal(first.flat, other.flat)
    series = {name: more.series(i) for i, name in enumerate(more.runs["participant_id"])}
    columns = ["participant_id", "split", *TRAITS]
    rows = more.runs.set_index("participant_id", drop=False)
    for i, name in enumerate(first.runs["participant_id"]):
        np.testing.assert_array_equal(first.series(i), series[name])
        assert first.runs.loc[i, columns].tolist() == rows.loc[name, columns].tolist()
    assert more.runs["participant_id"].is_unique
    assert more.runs["split"].value_counts().to_dict() == {"train": 9, "test": 3, "valid": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": -1}, "train, valid, test are -1"),
        ({"train": 0, "valid": 0}, "nobody to write"),
        ({"frames": 1}, "frames is 1"),
        ({"attainable": 1.2}, "attainable 1.2"),
        ({"group_fc": "brainspace"}, "n_rois 450"),
    ],
)
def test_impossible_settings(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        write_known_truth(tmp_path / "a", **{"train": 3, "valid": 1, **SMALL, **change})
    assert not (tmp_path / "a").exists()


def test_command_line_and_a_second_call(tmp_path):
    command = [sys.executable, "-m", "src.datasets.prepare.known_truth", "--train", "3"]
    command += ["--valid", "1", "--n_rois", "30", "--frames", "40", "--group_fc", "model"]
    command += ["--out", str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 people x 30 ROIs x 40 frames" in done.stdout
    assert {*TRAITS, "static" + LATENT} < set(DataFolder(tmp_path / "s").runs.columns)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "nothing to do" in done.stdout
    done = subprocess.run([*command, "--seed", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "already holds a data set" in done.stderr
