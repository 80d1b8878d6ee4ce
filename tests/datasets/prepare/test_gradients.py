"""Group connectivity, gradients against a diffusion map by hand, centroids, and their files."""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

from src.config import config_from_dict
from src.datasets.connectivity import group_connectivity
from src.datasets.folder import DataFolder, FolderWriter
from src.datasets.prepare import gradients as module
from src.datasets.prepare.gradients import (
    compute_gradients,
    diffusion_gradients,
    main,
    roi_centroids,
)
from src.datasets.roi_features import load_gradients
from src.helper import init_dataset, init_roi_features
from src.utils.errors import UserError

N_ROIS = 40


def networks(rng, frames, n_rois=N_ROIS):
    """Series [R, T] in which neighbouring ROIs share signal, as along a gradient."""
    centres = np.linspace(0, 1, 5)
    place = np.linspace(0, 1, n_rois)[:, None]
    mixing = np.exp(-((place - centres) ** 2) / 0.05)
    return 100 + mixing @ rng.normal(size=(5, frames)) + 0.5 * rng.normal(size=(n_rois, frames))


@pytest.fixture
def folder(tmp_path):
    """Four people for training, one with two runs, one with a bad ROI; another for validation."""
    rng = np.random.default_rng(0)
    labels = [f"roi{i:02}" for i in range(N_ROIS)]
    with FolderWriter(tmp_path / "data", roi_labels=labels, atlas="line", provenance={}) as writer:
        for person in range(4):
            series = networks(rng, 120 + 20 * person)
            if person == 1:
                series[3] = 0
            writer.add_run(series, participant_id=f"p{person}", tr=2)
        writer.add_run(networks(rng, 100), participant_id="p0", run="02", tr=2)
        writer.add_run(rng.normal(size=(N_ROIS, 80)), participant_id="p9", tr=2, split="valid")
    return DataFolder(tmp_path / "data")


# --- connectivity ----------------------------------------------------------------------------


def test_group_connectivity_is_the_fisher_mean_over_people(folder):
    with np.errstate(all="ignore"):  # the correlations of the bad ROI are NaN, as they should be
        z = [np.arctanh(np.corrcoef(folder.series(row))) for row in range(5)]
    people = [(z[0] + z[4]) / 2, *z[1:4]]
    expected = np.tanh(np.nanmean(people, axis=0))
    np.fill_diagonal(expected, 1)
    connectivity, rows = group_connectivity(folder)
    assert rows.tolist() == [0, 1, 2, 3, 4]  # of the training split alone
    np.testing.assert_allclose(connectivity, expected, atol=1e-5)
    assert np.isfinite(connectivity).all()


def test_a_pair_that_is_never_good_together_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    labels = list("abcdefghijkl")
    with FolderWriter(tmp_path / "x", roi_labels=labels, atlas="x", provenance={}) as writer:
        for person, roi in (("p0", 2), ("p1", 5)):
            series = rng.normal(size=(12, 50))
            series[roi] = 1
            writer.add_run(series, participant_id=person, tr=2)
    with pytest.raises(UserError, match="ROIs 'c' and 'f' are good together in no run"):
        group_connectivity(DataFolder(tmp_path / "x"))
    with pytest.raises(UserError, match="no run in split test"):
        group_connectivity(DataFolder(tmp_path / "x"), "test")


# --- gradients -------------------------------------------------------------------------------


def diffusion_map(connectivity, n_components, kept):
    """The diffusion map of method 2 in plain numpy: alpha 0.5, diffusion time 0."""
    sparse = np.zeros_like(connectivity)
    for row, values in enumerate(connectivity):
        top = np.argsort(values)[-kept:]
        sparse[row, top] = values[top]
    unit = sparse / np.linalg.norm(sparse, axis=1, keepdims=True)
    affinity = 1 - np.arccos(np.clip(unit @ unit.T, -1, 1)) / np.pi
    degree = affinity.sum(1)
    weights = affinity / np.sqrt(np.outer(degree, degree))  # alpha = 1/2
    degree = weights.sum(1)
    symmetric = weights / np.sqrt(np.outer(degree, degree))  # similar to the Markov matrix
    values, vectors = np.linalg.eigh(symmetric)
    values, vectors = values[::-1][1 : n_components + 1], vectors[:, ::-1]
    scale = values / (1 - values)  # diffusion time 0: the sum over all times
    return (vectors / vectors[:, :1])[:, 1 : n_components + 1] * scale, scale


def test_gradients_are_the_diffusion_map_of_the_spec(folder):
    connectivity, _ = group_connectivity(folder)
    gradients, eigenvalues = diffusion_gradients(connectivity, 5)
    kept = int(N_ROIS * (1 - 0.9))  # 3: in floating point 1 - 0.9 is a little less than 0.1
    expected, scale = diffusion_map(connectivity, 5, kept)
    signs = np.sign((gradients * expected).sum(0))
    # BrainSpace hands a Markov matrix that is not quite symmetric to a solver for symmetric ones.
    np.testing.assert_allclose(eigenvalues, scale, rtol=1e-2)
    np.testing.assert_allclose(gradients, expected * signs, atol=0.02 * np.abs(expected).max())
    assert np.abs(expected - diffusion_map(connectivity, 5, N_ROIS)[0] * signs).max() > 0.1


def test_gradients_are_the_same_each_time(folder):
    connectivity, _ = group_connectivity(folder)
    first, _ = diffusion_gradients(connectivity, 4)
    second, _ = diffusion_gradients(connectivity, 4)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("n_rois", "n_components", "message"),
    [
        (20, 19, "n_components is 19; 20 ROIs have from 1 to 18"),
        (20, 0, "n_components is 0"),
        (8, 2, "8 ROIs are too few"),
    ],
)
def test_too_many_gradients_are_refused(n_rois, n_components, message):
    with pytest.raises(UserError, match=message):
        diffusion_gradients(np.eye(n_rois), n_components)


# --- files -----------------------------------------------------------------------------------


def test_the_file_and_its_description(folder, tmp_path):
    path = compute_gradients(folder, tmp_path / "deep/er.csv", n_components=6)
    values = load_gradients(path, N_ROIS, roi_labels=folder.roi_labels)
    assert values.shape == (N_ROIS, 6)
    assert values.dtype == np.float32
    expected, _ = diffusion_gradients(group_connectivity(folder)[0], 6)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert not path.read_text().startswith("#")  # no header
    described = json.loads(path.with_suffix(".json").read_text())
    assert described["roi_labels"] == list(folder.roi_labels)
    assert (described["n_runs"], described["n_participants"]) == (5, 4)
    assert described["settings"]["sparsity"] == 0.9
    np.testing.assert_array_equal(load_gradients(path, N_ROIS, n_components=2), values[:, :2])


def test_a_file_without_description_loads(tmp_path):
    values = np.random.default_rng(0).normal(size=(450, 30))
    np.savetxt(tmp_path / "g.csv", values, delimiter=",")  # as the published file is written
    loaded = load_gradients(tmp_path / "g.csv", 450, 30, roi_labels=[f"r{i}" for i in range(450)])
    np.testing.assert_array_equal(loaded, values.astype(np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,2\n3,4\n", "has 2 rows, but the data have 3 ROIs"),
        ("1,2\n3,x\n5,6\n", "must hold comma-separated numbers"),
        ("1,2\n3\n5,6\n", "must hold comma-separated numbers"),
        ("1,2\n3,nan\n5,6\n", "line 2, column 2: the value is NaN or infinite"),
        ("1,2\n3,4\ninf,6\n", "line 3, column 1"),
        ("1\n3\n5\n", "has 1 columns; 2 are asked for"),
        ("roi,g1\n1,2\n3,4\n5,6\n", "no header"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, content, message):
    path = tmp_path / "g.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_gradients(path, 3, n_components=2)


def test_a_missing_file_says_how_to_make_it(tmp_path, folder):
    command = "python -m src.datasets.prepare.gradients --data_dir"
    missing = tmp_path / "g.csv"
    with pytest.raises(UserError) as without:
        load_gradients(missing, 3)
    assert str(without.value) == (
        f"{missing} does not exist. Make it with: {command} FOLDER --out {missing}"
    )
    with pytest.raises(UserError) as beside:
        load_gradients(missing, N_ROIS, training_data=folder)
    assert str(beside.value).endswith(f"{command} {folder.path} --out {missing}")
    centroids = folder.path / "centroids.csv"
    with pytest.raises(UserError) as inside:
        load_gradients(centroids, N_ROIS, kind="centroids", training_data=folder)
    assert str(inside.value).endswith(f"{command} {folder.path} --centroids_from ATLAS.nii.gz")


def test_another_order_of_rois_is_refused(folder):
    path = compute_gradients(folder, n_components=2)
    labels = list(folder.roi_labels)
    labels[4], labels[7] = labels[7], labels[4]
    with pytest.raises(UserError, match="row 5 is ROI 'roi04', in the data it is 'roi07'"):
        load_gradients(path, N_ROIS, roi_labels=labels)
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(UserError, match="does not say kind and roi_labels"):
        load_gradients(path, N_ROIS, roi_labels=labels)


# --- whose gradients -------------------------------------------------------------------------


def swapped(folder, path):
    """The same folder with the series of its first and second person exchanged."""
    order = (1, 0, 2, 3)
    with FolderWriter(path, roi_labels=folder.roi_labels, atlas="line", provenance={}) as writer:
        for person in range(4):
            writer.add_run(folder.series(order[person]), participant_id=f"p{person}", tr=2)
    return DataFolder(path)


def test_gradients_of_other_training_runs_are_refused_in_pretraining(folder, tmp_path):
    path = compute_gradients(folder, n_components=4)
    values = load_gradients(path, N_ROIS, training_data=folder)
    other = swapped(folder, tmp_path / "other")
    with pytest.raises(UserError) as error:
        load_gradients(path, N_ROIS, training_data=other)
    assert str(error.value).startswith(f"{path} was not computed from the training runs of")
    assert "from 5 runs of 4 people; there are 4 of 4" in str(error.value)
    # The command that it names computes what is then accepted.
    command = str(error.value).split("Compute it anew: ")[1].split(" (")[0].split()
    assert command[:3] == ["python", "-m", module.__name__]
    main(command[3:])
    anew = load_gradients(path, N_ROIS, training_data=other)
    assert not np.array_equal(anew, values)
    assert anew.shape == values.shape
    with pytest.raises(UserError, match="not computed from the training runs"):
        load_gradients(path, N_ROIS, training_data=folder)


def test_two_swapped_people_are_enough_and_a_phenotype_is_not(folder, tmp_path):
    four = swapped(folder, tmp_path / "four")
    path = compute_gradients(four, n_components=2)
    with pytest.raises(UserError, match="4 runs of 4 people then and now, but other people"):
        load_gradients(path, N_ROIS, training_data=swapped(four, tmp_path / "again"))
    table = four.path / "participants.tsv"
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([f"{head}\tage", *(f"{row}\t50" for row in rows)]) + "\n")
    load_gradients(path, N_ROIS, training_data=DataFolder(four.path))


def test_who_is_compared_in_pretraining_only_and_where_the_file_says(folder, tmp_path):
    path = compute_gradients(folder, n_components=2)
    other = swapped(folder, tmp_path / "other")
    load_gradients(path, N_ROIS, roi_labels=other.roi_labels, kind="gradients")  # an evaluation
    sidecar = path.with_suffix(".json")
    description = json.loads(sidecar.read_text())
    del description["fingerprint"]
    sidecar.write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"gradients\.json does not say of which runs they are"):
        load_gradients(path, N_ROIS, training_data=folder)
    sidecar.unlink()  # as the published gradients come
    load_gradients(path, N_ROIS, training_data=other)
    path = compute_gradients(folder, n_components=2, split="valid")
    with pytest.raises(UserError, match="from 1 runs of 1 people; there are 5 of 4"):
        load_gradients(path, N_ROIS, training_data=folder)


def test_pretraining_refuses_gradients_of_others(folder, tmp_path):
    path = compute_gradients(swapped(folder, tmp_path / "other"), n_components=2)
    values = {
        "data": {
            "data_dir": str(folder.path),
            "crop_size": [N_ROIS, 32],
            "gradient_csv_path": str(path),
            "normalization": "zscore_roi",
        }
    }
    config = config_from_dict(values, "test")
    dataset = init_dataset(config, "train", config.clip_input.changed(bad_rois="zero"))
    with pytest.raises(UserError, match="was not computed from the training runs"):
        init_roi_features(config, dataset, None)
    stored = torch.zeros(N_ROIS, 2)
    assert init_roi_features(config, dataset, stored) is stored  # a run that goes on has its own
    compute_gradients(folder, path, n_components=2)
    assert init_roi_features(config, dataset, None).shape == (N_ROIS, 2)


# --- centroids -------------------------------------------------------------------------------


def save_labels(path, regions, shape=(10, 12, 14)):
    """An image with voxels of 2 mm and the given {number: slices}."""
    values = np.zeros(shape, dtype=np.int16)
    for number, where in regions.items():
        values[where] = number
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-10, -20, -30)
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


@pytest.fixture
def images(tmp_path):
    a = {7: np.s_[0:2, 0, 0], 3: np.s_[4, 4, 4]}
    b = {1: np.s_[1:4, 5, 6]}
    return save_labels(tmp_path / "a.nii.gz", a), save_labels(tmp_path / "b.nii", b)


def test_centroids_of_images_in_order(images):
    centroids = roi_centroids(images, ["x", "y", "z"])
    np.testing.assert_allclose(centroids, [[-2, -12, -22], [-9, -20, -30], [-6, -10, -18]])


def test_centroids_by_name(images, tmp_path):
    lookup = tmp_path / "lookup.tsv"
    lookup.write_text("index\tname\n3\tthree\n7\tseven\n9\tnine\n")
    centroids = roi_centroids(images[:1], ["seven", "three"], lookup)
    np.testing.assert_allclose(centroids, [[-9, -20, -30], [-2, -12, -22]])
    for labels, message in (
        (["seven", "thre"], "no region named 'thre'. Did you mean 'three'"),
        (["seven", "nine"], "'nine' is 9, which the image does not hold"),
    ):
        with pytest.raises(UserError, match=message):
            roi_centroids(images[:1], labels, lookup)
    with pytest.raises(UserError, match="one label image"):
        roi_centroids(images, ["seven"], lookup)


def test_images_that_do_not_fit_are_refused(images, tmp_path):
    with pytest.raises(UserError, match="3 regions, but the data have 2 ROIs"):
        roi_centroids(images, ["x", "y"])
    with pytest.raises(UserError, match="cannot be read as an image"):
        roi_centroids([tmp_path / "none.nii"], ["x"])
    (tmp_path / "text.nii").write_text("not an image")
    with pytest.raises(UserError, match="cannot be read as an image"):
        roi_centroids([tmp_path / "text.nii"], ["x"])
    blurred = tmp_path / "blurred.nii"
    nib.save(nib.Nifti1Image(np.full((3, 3, 3), 0.5), np.eye(4)), blurred)
    with pytest.raises(UserError, match="whole numbers"):
        roi_centroids([blurred], ["x"])


# --- command line ----------------------------------------------------------------------------


def test_command_line(folder, tmp_path, capsys):
    main(["--data_dir", str(folder.path), "--n_components", "3"])
    assert "40 ROIs x 3" in capsys.readouterr().out
    assert load_gradients(folder.path / "gradients.csv", N_ROIS).shape == (N_ROIS, 3)
    atlas = {i + 1: np.s_[i % 10, i // 10, 0] for i in range(N_ROIS)}
    image = save_labels(tmp_path / "atlas.nii", atlas)
    main(["--data_dir", str(folder.path), "--centroids_from", str(image)])
    centroids = load_gradients(
        folder.path / "centroids.csv",
        N_ROIS,
        roi_labels=folder.roi_labels,
        kind="centroids",
        training_data=folder,  # an atlas is of no people
    )
    np.testing.assert_allclose(centroids[11], [-8, -18, -30])


def test_command_line_errors_are_one_line(tmp_path, pytestconfig):
    command = [sys.executable, "-m", module.__name__, "--data_dir", str(tmp_path)]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=pytestconfig.rootpath, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "is not a data-set folder" in result.stderr
    assert len(result.stderr.splitlines()) == 1
