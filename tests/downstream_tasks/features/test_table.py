"""The rows beside the model: what each baseline is made of, and how it is named."""

import numpy as np
import pandas as pd
import pytest
import torch

from downstream_tasks.cohort.clips import task_clip_input
from downstream_tasks.cohort.examples import load_cohort
from downstream_tasks.cohort.problem import Problem, make_target
from downstream_tasks.cohort.splits import Split
from downstream_tasks.comparison import no_features_row
from downstream_tasks.config import task_from_dict
from downstream_tasks.features import baselines
from downstream_tasks.features.registry import REGISTRY
from downstream_tasks.features.table import Representations
from src.datasets.folder import DataFolder
from src.pretrained.load import load_pretrained
from tests.downstream_tasks.conftest import labelled_folder, make_cohort, write_checkpoint


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    data = labelled_folder(folder / "data", people=4)
    onsets = {"participant_id": [f"p{i:02d}" for i in range(4)], "onset": [13.0, 15.0, 13.0, 15.0]}
    table = pd.DataFrame(onsets).assign(session="01", run="01", kind=["a", "b", "a", "b"])
    table.to_csv(data / "events.tsv", sep="\t", index=False)
    return data, write_checkpoint(folder / "jepa-latest.pth.tar", data)


def representations_of(files, out, **data):
    path, checkpoint = files
    section = {"data_path": str(path), "normalization": "none", "num_workers": 0} | data
    config = task_from_dict(
        {"output_root": str(out), "data": section, "model": {"load_path": str(checkpoint)}}, "test"
    )
    pretrained = load_pretrained(checkpoint)
    cohort = load_cohort(
        DataFolder(path),
        config.data,
        task_clip_input(config.data, pretrained),
        pretrained.encoder_spec.patch_size,
    )
    return Representations(config, cohort, pretrained, torch.device("cpu"))


def test_events_have_rows_of_the_whole_clip_and_rows_of_the_scored_patch(files, tmp_path):
    """The encoder attends to all 16 frames of a clip; its raw rivals must have them too."""
    representations = representations_of(
        files, tmp_path, target="kind", unit="event", scored_patch=1
    )
    series = DataFolder(files[0]).series(1)
    clip, patch = series[:, 6:22], series[:, 10:14]  # (15 + 5) s / 2 s = frame 10
    expected = {
        "raw_clip": clip.ravel(),
        "raw_patch": patch.ravel(),
        "patch_means": clip.reshape(12, 4, 4).mean(2).ravel(),
        "patch_mean": patch.mean(1),
        "fc_clips": baselines.functional_connectivity(clip),
        "fc": baselines.functional_connectivity(patch),
        "roi_stats": baselines.roi_statistics(patch),
        "log_sd": baselines.log_roi_sd(patch),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(representations.features(name)[1], values, rtol=1e-4, atol=1e-6)
    titles = [representations.title(name) for name in REGISTRY]
    assert len(set(titles)) == len(titles)
    assert all("patch" in representations.title(name) for name in ("raw_patch", "roi_stats"))
    assert all("whole" in representations.title(name) for name in ("raw_clip", "fc_clips"))


def test_runs_have_connectivity_of_all_their_frames(files, tmp_path):
    representations = representations_of(files, tmp_path, target="sex")
    series = DataFolder(files[0]).series(2)
    np.testing.assert_allclose(
        representations.features("fc")[2], baselines.functional_connectivity(series), rtol=1e-4
    )
    assert representations.features("raw_clip").shape == (4, 12 * 16)
    assert representations.title("roi_stats") == "ROI mean and variance"


def test_the_row_without_features_knows_the_training_people_only():
    people = np.arange(10)
    split = Split(train=people[:4], valid=people[4:6], test=people[6:])
    classes = make_cohort(np.array([0, 0, 0, 1, *[1] * 6]), classes=("a", "b"))
    values = make_cohort(np.array([1.0, 3.0, 5.0, 7.0, *[90.0] * 6]))
    expected = {"Majority class": [0.75, 0.25], "Mean of the training people": 0.0}
    for cohort in (classes, values):
        problem = Problem(cohort, split, make_target(cohort, split), "accuracy", 0)
        row = no_features_row(cohort, [problem])
        for scores in row.results[0].scores[split.test]:
            np.testing.assert_allclose(scores, expected[row.name])


def test_the_untrained_encoder_is_another_one(files, tmp_path):
    representations = representations_of(files, tmp_path, target="sex")
    trained, untrained = (representations.features(name) for name in ("model", "random_weights"))
    assert trained.shape == untrained.shape
    assert np.abs(trained - untrained).max() > 0.1
