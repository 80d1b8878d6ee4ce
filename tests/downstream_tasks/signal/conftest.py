"""A folder of people whose signal follows a known law, and a checkpoint for it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from downstream_tasks.cohort.clips import task_clip_input
from downstream_tasks.cohort.runs import RunSplit
from downstream_tasks.cohort.splits import folder_split
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.config_checks import task_from_dict
from downstream_tasks.evaluation import load_model
from downstream_tasks.main_signal import choose_hidings, prepare_split
from downstream_tasks.signal.atlas import roi_features
from downstream_tasks.signal.clips import people_of_folder
from downstream_tasks.signal.evaluate import Test
from downstream_tasks.signal.task import SignalTask
from src.datasets.folder.writer import FolderWriter
from tests.downstream_tasks.conftest import write_checkpoint

ROIS, FRAMES, RUN = 12, 16, 60
SPLITS = ("train", "train", "train", "valid", "test")
Series = Callable[[np.random.Generator], np.ndarray]


def two_networks(rng: np.random.Generator) -> np.ndarray:
    """Two hidden autoregressions, each of which half of the ROIs follow; ``[R, RUN]``."""
    hidden = np.zeros((2, RUN + 50))
    for t in range(2, hidden.shape[1]):
        past = 1.6 * hidden[:, t - 1] - 0.8 * hidden[:, t - 2]
        hidden[:, t] = past + 0.5 * rng.normal(size=2)
    return np.repeat(hidden[:, 50:], ROIS // 2, axis=0) + 0.5 * rng.normal(size=(ROIS, RUN))


def signal_folder(path: Path, law: Series = two_networks, people: int = 15) -> Path:
    """Runs of ``law``, two a person; the first person's first run has a constant ROI."""
    rng = np.random.default_rng(0)
    labels = [f"7Networks_{'LR'[r % 2]}H_{'ab'[r >= ROIS // 2]}_{r}" for r in range(ROIS)]
    with FolderWriter(path, roi_labels=labels, atlas="test", provenance={}) as writer:
        for i in range(people):
            for run in ("01", "02"):
                series = law(rng)
                if (i, run) == (4, "01"):
                    series[3] = 1.0
                split = SPLITS[i % 5]
                writer.add_run(series, participant_id=f"p{i:02d}", run=run, tr=2.0, split=split)
    gradients = rng.normal(size=(ROIS, 3)) * 0.2
    gradients[: ROIS // 2, 0] += 2.0
    np.savetxt(path / "gradients.csv", gradients, delimiter=",")
    return path


def signal_task(folder: Path, checkpoint: Path, output: Path, **sections: dict) -> DownstreamConfig:
    """A task on such a folder; ``sections`` change its keys."""
    values = {
        "name": "signal",
        "protocol": "forecast",
        "output_root": str(output),
        "data": {
            "data_path": str(folder),
            "bad_rois": "zero",
            "gradient_csv_path": str(folder / "gradients.csv"),
            "num_workers": 0,
        },
        "split": {"source": "folder"},
        "model": {"load_path": str(checkpoint)},
        "evaluation": {"num_seed": 1, "clips": 3},
        "signal": {"untrained_seeds": 2, "folds": 3, "mlp_epochs": 2},
    }
    for name, changes in sections.items():
        if not isinstance(changes, dict):
            values[name] = changes
        else:
            values[name] = values.get(name, {}) | changes
    return task_from_dict(values, "a test")


@pytest.fixture(scope="session")
def two_networks_files(tmp_path_factory) -> tuple[Path, Path]:
    """Folder and checkpoint."""
    folder = tmp_path_factory.mktemp("two_networks")
    data = signal_folder(folder / "data")
    return data, write_checkpoint(folder / "jepa-latest.pth.tar", data, (ROIS, FRAMES))


def make_task(
    folder: Path, checkpoint: Path, protocol: str, **sections: dict
) -> tuple[SignalTask, Test]:
    """What the methods of a protocol are given, and the clips of the test people."""
    config = signal_task(folder, checkpoint, Path("unused"), protocol=protocol, **sections)
    pretrained, opened = load_model(config, with_predictor=True)
    hidings = choose_hidings(config, pretrained, opened)
    features = roi_features(pretrained, config.data.gradient_csv_path, config.data.data_path)
    clip_input = task_clip_input(config.data, pretrained)
    cohort = people_of_folder(opened, config.data, clip_input)
    run = RunSplit(0, None, folder_split(cohort))
    shared = (config, cohort, pretrained, hidings, features, run, torch.device("cpu"))
    return prepare_split(*shared)


AR_1 = 0.8


def autoregression(rng: np.random.Generator) -> np.ndarray:
    """Every ROI by itself: ``x_t = .8 x_{t-1} + e``, of variance 1."""
    series = np.zeros((ROIS, RUN + 50))
    series[:, 0] = rng.normal(size=ROIS)
    for t in range(1, series.shape[1]):
        noise = np.sqrt(1 - AR_1**2) * rng.normal(size=ROIS)
        series[:, t] = AR_1 * series[:, t - 1] + noise
    return series[:, 50:]
