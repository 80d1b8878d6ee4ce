"""Synthetic data: ROI order, connectivity and spectrum as asked for, the same every time."""

import subprocess
import sys

import numpy as np
import pytest

from src.datasets.prepare.population import (
    FAMILIES,
    GROUP_FC,
    Population,
    bold_noise,
    fc_to_mixing,
    make_atlas,
    make_group_fc,
    personal_mixing,
    simulate_run,
)
from src.datasets.prepare.synthetic import write_synthetic
from src.utils.errors import UserError

N_FAMILIES = len(FAMILIES)


def test_atlas_has_the_published_order():
    atlas = make_atlas()
    assert len(set(atlas.labels)) == 450
    assert not any(label.startswith("17Networks") for label in atlas.labels[:50])
    assert all(label.startswith("17Networks_LH_") for label in atlas.labels[50:250])
    assert all(label.startswith("17Networks_RH_") for label in atlas.labels[250:])
    assert set(atlas.families[:50]) == {0}
    # Schaefer-400: left and right sizes of the seven families together
    assert np.bincount(atlas.families).tolist() == [50, 61, 77, 46, 47, 26, 52, 91]


@pytest.mark.parametrize("every", [3, 5])
def test_smaller_atlas_is_the_middle_roi_of_every_few(every):
    families = make_atlas(450).families[every // 2 :: every]
    np.testing.assert_array_equal(make_atlas(450 // every).families, families)


@pytest.mark.parametrize("n_rois", [25, 94, 122, 1000])
def test_atlas_of_any_size(n_rois):
    atlas = make_atlas(n_rois)
    assert len(set(atlas.labels)) == len(atlas.networks) == n_rois
    assert np.bincount(atlas.families, minlength=N_FAMILIES).min() > 0


@pytest.mark.parametrize("name", GROUP_FC)
def test_group_fc_is_a_correlation_matrix_with_networks(name):
    atlas = make_atlas()
    fc = GROUP_FC[name](atlas, np.random.default_rng(0))
    np.testing.assert_allclose(np.diag(fc), 1)
    np.testing.assert_allclose(fc, fc.T, atol=1e-12)
    assert np.linalg.eigvalsh(fc)[0] > 0
    same = atlas.families[:, None] == atlas.families
    within = fc[same & ~np.eye(450, dtype=bool)].mean()
    assert within > fc[~same].mean() + 0.12


def test_brainspace_fc_keeps_the_real_cortex():
    from brainspace.datasets import load_group_fc

    fc = GROUP_FC["brainspace"](make_atlas(), np.random.default_rng(0))
    np.testing.assert_array_equal(fc[50:, 50:], load_group_fc("schaefer", scale=400))
    fifth = GROUP_FC["brainspace"](make_atlas(90), np.random.default_rng(0))
    np.testing.assert_array_equal(fifth, fc[2::5, 2::5])
    with pytest.raises(UserError, match="model FC"):
        GROUP_FC["brainspace"](make_atlas(100), np.random.default_rng(0))


def test_run_has_the_asked_connectivity_and_variance():
    rng = np.random.default_rng(0)
    fc = make_group_fc(make_atlas(40), rng)
    run = simulate_run(rng, fc_to_mixing(fc), 20_000, 0.735)
    assert run.shape == (40, 20_000)
    assert run.dtype == np.float32
    np.testing.assert_allclose(run.var(1), 1, atol=0.1)
    np.testing.assert_allclose(np.corrcoef(run), fc, atol=0.08)


@pytest.mark.parametrize("tr", [0.735, 3.0])
def test_noise_has_a_bold_spectrum_in_hertz(tr):
    noise = bold_noise(np.random.default_rng(0), 200, 1000, tr)
    power = (np.abs(np.fft.rfft(noise)) ** 2).mean(0)
    frequency = np.fft.rfftfreq(1000, tr)
    slow = power[(frequency > 0.01) & (frequency < 0.03)].mean()
    assert power[(frequency > 0.12) & (frequency < 0.15)].mean() < 0.3 * slow
    assert power[frequency < 0.005].mean() < 0.2 * slow
    # Cut out of a longer stretch: the last frame is no neighbour of the first.
    assert abs(np.corrcoef(noise[:, 0], noise[:, -1])[0, 1]) < 0.25


def test_gain_moves_the_correlation_of_its_two_families():
    atlas = make_atlas(60)
    mixing = fc_to_mixing(make_group_fc(atlas, np.random.default_rng(0)))
    gain = np.zeros((N_FAMILIES, N_FAMILIES))
    np.testing.assert_allclose(personal_mixing(mixing, atlas, gain), mixing)
    a, b = FAMILIES.index("Default"), FAMILIES.index("Vis")
    gain[a, b] = 0.5
    changed = personal_mixing(mixing, atlas, gain)
    np.testing.assert_allclose(np.linalg.norm(changed, axis=1), 1)
    change = changed @ changed.T - mixing @ mixing.T
    block = np.ix_(atlas.families == a, atlas.families == b)
    assert change[block].min() > 0.1
    untouched = atlas.families != a
    np.testing.assert_allclose(change[np.ix_(untouched, untouched)], 0, atol=1e-12)


def test_people_differ_more_than_the_runs_of_one(tmp_path):
    folder = write_synthetic(tmp_path / "s", 10, n_rois=60, frames=400, tr=2.0, runs=2)
    assert folder.runs["run"].tolist() == ["01", "02"] * 10
    edges = np.triu_indices(60, 1)
    fc = np.array([np.corrcoef(folder.series(i))[edges] for i in range(20)])
    similarity = np.corrcoef(fc)[::2, 1::2]
    assert (similarity.argmax(1) == np.arange(10)).mean() >= 0.9


def test_same_arguments_same_bytes_and_more_people_change_nobody(tmp_path):
    settings = {"n_rois": 30, "frames": 40, "tr": 0.8}
    first = write_synthetic(tmp_path / "a", 5, **settings)
    again = write_synthetic(tmp_path / "b", 5, **settings)
    more = write_synthetic(tmp_path / "c", 9, **settings)
    other = write_synthetic(tmp_path / "d", 5, **settings, seed=1)
    np.testing.assert_array_equal(first.flat, again.flat)
    np.testing.assert_array_equal(first.flat, more.flat[: first.flat.size])
    assert not np.array_equal(first.flat, other.flat)
    assert first.runs["split"].value_counts().to_dict() == {"train": 3, "valid": 1, "test": 1}
    assert first.runs["bad_rois"].isna().all()


def test_existing_folder_is_kept_or_refused(tmp_path, capsys):
    folder = write_synthetic(tmp_path / "a", 4, n_rois=30, frames=40)
    written = (folder.path / "timeseries.npy").stat().st_mtime_ns
    write_synthetic(tmp_path / "a", 4, n_rois=30, frames=40)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="already holds a data set"):
        write_synthetic(tmp_path / "a", 4, n_rois=30, frames=41)
    assert (folder.path / "timeseries.npy").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_rois": 24}, "n_rois is 24"),
        ({"frames": 1}, "frames is 1"),
        ({"tr": 0.0}, "tr is 0"),
        ({"valid": 2, "test": 3}, "too few"),
        ({"group_fc": "brainspace"}, "n_rois 450"),
    ],
)
def test_impossible_settings(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        write_synthetic(tmp_path / "a", 5, **{"n_rois": 30, "frames": 40, **change})
    assert not (tmp_path / "a").exists()


def test_scale_differs_between_rois():
    population = Population.draw(100, "model", 0)
    run = population.run(np.random.default_rng(0), np.zeros((N_FAMILIES, N_FAMILIES)), 3000, 2.0)
    np.testing.assert_allclose(run.std(1), population.sd[:, 0], rtol=0.2)
    assert run.std(1).max() > 2 * run.std(1).min()


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "src.datasets.prepare.synthetic", "--out", str(tmp_path / "s")]
    command += ["--n_people", "4", "--n_rois", "30", "--frames", "40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 people, 4 runs x 30 ROIs x 40 frames" in done.stdout
    done = subprocess.run([*command, "--tr", "-1"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: tr is -1.0")
