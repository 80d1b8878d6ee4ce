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
from downstream_tasks.config_checks import task_from_dict
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


def representations_of(files, out, evaluation=None, **data):
    path, checkpoint = files
    section = {"data_path": str(path), "normalization": "none", "num_workers": 0} | data
    config = task_from_dict(
        {
            "output_root": str(out),
            "data": section,
            "model": {"load_path": str(checkpoint)},
            "evaluation": evaluation or {},
        },
        "test",
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


def test_connectivity_is_of_the_frames_that_the_model_sees_or_of_all(files, tmp_path):
    series = DataFolder(files[0]).series(2)  # 30 frames, of which a clip has 16
    whole = baselines.functional_connectivity(series)
    middle = baselines.functional_connectivity(series[:, 7:23])
    representations = representations_of(files, tmp_path, target="sex")
    np.testing.assert_allclose(representations.features("fc")[2], middle, rtol=1e-4)
    np.testing.assert_allclose(representations.features("fc_run")[2], whole, rtol=1e-4)
    stats = baselines.roi_statistics(series[:, 7:23])  # as they are stored, offsets and all
    np.testing.assert_allclose(representations.features("roi_stats")[2], stats, rtol=1e-4)
    representations = representations_of(
        files, tmp_path, target="sex", evaluation={"baseline_frames": "run"}
    )
    np.testing.assert_allclose(representations.features("fc")[2], whole, rtol=1e-4)


def test_the_frames_of_several_clips_make_one_connectivity(files, tmp_path):
    """Padding is no signal: it is not among them."""
    series = DataFolder(files[0]).series(2)
    representations = representations_of(files, tmp_path, target="sex", evaluation={"clips": 2})
    joined = np.concatenate([series[:, :16], series[:, 14:]], axis=1)
    expected = baselines.functional_connectivity(joined)
    np.testing.assert_allclose(representations.features("fc")[2], expected, rtol=1e-4)
    representations = representations_of(
        files, tmp_path, target="sex", stride=2, short_runs="pad", normalization="zscore_sample"
    )
    expected = baselines.functional_connectivity(series[:, ::2])  # 15 samples of 16
    np.testing.assert_allclose(representations.features("fc")[2], expected, rtol=1e-4)
    assert representations.clips[2]["fmri"].shape == (1, 12, 16)


@pytest.mark.parametrize("name", ["fc_tangent", "fc_coskewness"])
def test_what_is_fitted_is_fitted_on_the_training_people(files, tmp_path, name):
    representations = representations_of(files, tmp_path, target="sex")
    cohort, entry = representations.cohort, REGISTRY[name]

    def problem(train):
        rest = np.setdiff1d(np.arange(4), train)
        split = Split(train=np.array(train), valid=rest[:1], test=rest[1:])
        target = make_target(make_cohort(np.array([0.0, 1.0, 2.0, 3.0])), split)
        return Problem(cohort, split, target, "mse", 0)

    first = representations.features(name, problem([0, 1]))
    assert representations.features(name, problem([0, 1])) is first
    second = representations.features(name, problem([2, 3]))
    clips = [DataFolder(files[0]).series(row)[:, 7:23] for row in range(4)]
    for train, features in (([0, 1], first), ([2, 3], second)):
        function = entry.function([clips[i] for i in train])
        for clip, row in zip(clips, features, strict=True):
            np.testing.assert_allclose(np.abs(row), np.abs(function(clip)), atol=2e-3)
    assert np.abs(np.abs(first) - np.abs(second)).max() > 0.1


def test_a_row_that_has_seen_more_than_the_model_says_so(files, tmp_path):
    more = "sees all frames of a run (60 s, median), the model 32 s of it"
    for evaluation, reads, note in (
        ({}, "run", None),
        ({}, "clip", None),
        ({}, "whole_run", more),
        ({"baseline_frames": "run"}, "run", more),
        ({"clips": 2}, "whole_run", None),  # of 32 s from 0 and 28 s on: all of it
    ):
        series = representations_of(files, tmp_path, target="sex", evaluation=evaluation).series
        assert series.note(reads) == note
    strided = representations_of(files, tmp_path, target="sex", stride=2, short_runs="pad")
    np.testing.assert_allclose(strided.clips.seconds(), [60.0] * 4)  # 15 samples, 4 s apart
    some = representations_of(files, tmp_path, target="sex", evaluation={"clips": 2})
    np.testing.assert_allclose(some.clips.seconds(), [60.0] * 4)


def test_features_that_are_let_go_are_computed_again(files, tmp_path):
    representations = representations_of(files, tmp_path, target="sex")
    first = representations.features("fc")
    assert representations.features("fc") is first
    representations.forget("fc")
    assert representations.features("fc") is not first
    np.testing.assert_array_equal(representations.features("fc"), first)


def test_the_raw_clip_is_that_of_the_model(files, tmp_path):
    representations = representations_of(files, tmp_path, target="sex")
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
