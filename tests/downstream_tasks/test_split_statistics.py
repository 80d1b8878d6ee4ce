"""Statistics of normalisation that a checkpoint lacks are of the training people of each split."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from downstream_tasks import main_finetune, main_fingerprint
from downstream_tasks.cohort.clips import ExampleClips, task_clip_input, with_split_statistics
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.config_checks import task_from_dict
from downstream_tasks.evaluation import Evaluation, prepare
from downstream_tasks.features.table import Representations
from downstream_tasks.finetune_state import BEST
from downstream_tasks.main_linearprobe import run
from src.datasets.folder import DataFolder
from src.datasets.folder.format import SERIES_FILE
from src.pretrained.load import load_pretrained
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import CPU, labelled_folder, write_checkpoint


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """Labelled people, and a checkpoint that normalises by no statistics."""
    folder = tmp_path_factory.mktemp("statistics")
    data = labelled_folder(folder / "data", runs=2)
    return data, write_checkpoint(folder / "jepa-latest.pth.tar", data)


def task(files: tuple[Path, Path], out: Path, **sections: dict) -> DownstreamConfig:
    values = {
        "name": "small",
        "protocol": "logistic",
        "output_root": str(out),
        "data": {
            "data_path": str(files[0]),
            "target": "sex",
            "num_workers": 0,
            "normalization": "robust_frames",
        },
        "split": {"resample": True},
        "model": {"load_path": str(files[1])},
        "evaluation": {"num_seed": 2, "n_exchanges": 50, "baselines": ["majority", "fc"]},
        "heads": {"folds": 3, "C": [0.01, 1.0]},
    }
    for name, changes in sections.items():
        values[name] = values.get(name, {}) | changes if isinstance(changes, dict) else changes
    return task_from_dict(values, "test")


def statistics(evaluation: Evaluation, seed: int) -> dict[str, np.ndarray]:
    problem = evaluation.problems[seed]
    pretrained = with_split_statistics(
        evaluation.pretrained, evaluation.config.data, evaluation.cohort, problem.split.train
    )
    return dict(task_clip_input(evaluation.config.data, pretrained).stats)


def test_they_are_of_the_training_people_of_the_split(files, tmp_path):
    evaluation = prepare(task(files, tmp_path))
    folder = DataFolder(files[0])
    for seed in (0, 1):
        stats, train = statistics(evaluation, seed), evaluation.problems[seed].split.train
        rows = sorted({evaluation.cohort.examples["row"].iloc[example] for example in train})
        frames = np.concatenate([folder.series(row) for row in rows], axis=1)
        q1, median, q3 = np.percentile(frames.astype(np.float64), (25, 50, 75), axis=1)
        np.testing.assert_allclose(stats["median"], median, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(stats["iqr"], q3 - q1, rtol=1e-4)
    assert not np.array_equal(statistics(evaluation, 0)["iqr"], stats["iqr"])


def test_data_of_test_people_change_no_statistic(files, tmp_path):
    evaluation = prepare(task(files, tmp_path / "a"))
    test, train = (getattr(evaluation.problems[0].split, part) for part in ("test", "train"))
    before = statistics(evaluation, 0)
    for part, same in ((test, True), (train, False)):
        other = tmp_path / f"changed_{same}"
        shutil.copytree(files[0], other)
        (other / "normalization.npz").unlink(missing_ok=True)
        folder, values = DataFolder(other), np.load(other / SERIES_FILE, mmap_mode="r+")
        for row in evaluation.cohort.examples["row"].iloc[part]:
            start = int(folder.offsets[row])
            values[start : start + 12 * int(folder.frames[row])] *= 7
        values.flush()
        again = prepare(task((other, files[1]), tmp_path / f"b{same}"))
        assert np.array_equal(again.problems[0].split.train, train)
        for name, value in statistics(again, 0).items():
            assert np.array_equal(value, before[name]) is same, name


def test_features_of_another_split_are_other_features(files, tmp_path):
    evaluation = prepare(task(files, tmp_path))
    representations = Representations(
        evaluation.config, evaluation.cohort, evaluation.pretrained, CPU
    )
    first, second = evaluation.problems
    of_first = np.array(representations.features("model", first))
    assert not np.allclose(of_first, representations.features("model", second))
    np.testing.assert_array_equal(of_first, representations.features("model", first))
    assert len(list((tmp_path / "features").glob("*.npy"))) == 2
    with pytest.raises(UserError, match=r"no split here.*data\.statistics_file"):
        representations.features("model")


def test_one_split_is_encoded_once(files, tmp_path):
    config = task(files, tmp_path, split={"resample": False})
    evaluation = prepare(config)
    assert evaluation.settings["normalisation"].endswith(
        "by statistics of the training people of the split"
    )
    representations = Representations(config, evaluation.cohort, evaluation.pretrained, CPU)
    for problem in evaluation.problems:
        representations.features("model", problem)
    representations.features("model")  # who is in it needs no saying
    assert len(list((tmp_path / "features").glob("*.npy"))) == 1


def test_studies_that_need_a_pass_for_every_split_are_refused_before_results_go(files, tmp_path):
    config = task(files, tmp_path)
    run(config, CPU)
    before = {path: path.stat().st_mtime_ns for path in config.output_dir.iterdir()}
    asked = task(files, tmp_path, evaluation={"n_permutations": 9})
    with pytest.raises(UserError, match=r"n_permutations: the checkpoint holds no statistics"):
        run(asked, CPU)
    after = {path: path.stat().st_mtime_ns for path in config.output_dir.iterdir()}
    log = config.output_dir / "log.txt"
    assert before.keys() == after.keys()
    assert before | {log: 0} == after | {log: 0}


def test_scored_again_from_stored_heads(files, tmp_path):
    config = task(files, tmp_path)
    scored = run(config, CPU)
    assert "by statistics of the training people of" in scored.settings["normalisation"]
    again = run(config, CPU, evaluate=True)
    assert scored.rows[0].mean == again.rows[0].mean


def test_a_fine_tuned_file_holds_those_that_it_was_trained_with(files, tmp_path):
    config = task(
        files,
        tmp_path,
        protocol="fine_tune",
        fine_tune={"epochs": 1, "batch_size": 8, "use_bfloat16": False},
        evaluation={"num_seed": 1, "baselines": ["majority"], "n_exchanges": 50},
    )
    main_finetune.run(config, [CPU])
    stored = load_pretrained(next(config.output_dir.rglob(BEST))).clip_input
    expected = statistics(prepare(task(files, tmp_path / "b")), 0)
    assert stored.normalization == "robust_frames"
    for name, value in expected.items():
        np.testing.assert_array_equal(stored.stats[name], value)


def test_a_file_of_statistics(files, tmp_path):
    path = tmp_path / "statistics.npz"
    np.savez(path, median=np.arange(12), iqr=np.full(12, 2.0))
    given = {"statistics_file": str(path)}
    evaluation = prepare(task(files, tmp_path / "a", data=given))
    clips = ExampleClips(evaluation.cohort, evaluation.config.data, evaluation.pretrained)
    assert clips.dataset.clip_input.stats["median"].tolist() == list(range(12))
    # FC reads runs as they are stored.
    representations = Representations(
        evaluation.config, evaluation.cohort, evaluation.pretrained, CPU
    )
    assert np.isfinite(representations.features("fc")).all()
    with pytest.raises(UserError, match=r"statistics_file is given, but the normalisation is none"):
        prepare(task(files, tmp_path / "b", data=given | {"normalization": "none"}))
    with pytest.raises(UserError, match=r"missing\.npz cannot be read"):
        prepare(task(files, tmp_path / "b", data={"statistics_file": "missing.npz"}))


def test_fingerprinting_has_no_training_people(files, tmp_path):
    config = dataclasses.replace(task(files, tmp_path), protocol="fingerprint")
    with pytest.raises(UserError, match=r"no split here.*data\.statistics_file"):
        main_fingerprint.run(config, torch.device("cpu"))
