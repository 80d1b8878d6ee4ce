"""Fixtures, and a tiny pretraining run, that all rooms share."""

import csv
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import torch

from src import train
from src.config import Config, config_from_dict
from src.datasets.folder import FolderWriter
from src.datasets.prepare.synthetic import write_synthetic
from src.utils import distributed
from src.utils.distributed import Ranks

ROIS, FRAMES, COMPONENTS = 26, 64, 5


def make_data(path: Path) -> Path:
    """Twelve synthetic people and made-up gradients."""
    write_synthetic(path, 12, n_rois=ROIS, frames=100, tr=2.0, valid=2, test=2)
    gradients = np.random.default_rng(0).normal(size=(ROIS, COMPONENTS))
    np.savetxt(path / "gradients.csv", gradients, delimiter=",")
    return path


def tiny_values(data: Path, folder: Path) -> dict:
    """The sections of a config that trains in a second: 8 people, 3 epochs of 2 steps."""
    return {
        "data": {
            "data_dir": str(data),
            "gradient_csv_path": str(data / "gradients.csv"),
            "batch_size": 2,
            "crop_size": [ROIS, FRAMES],
            "normalization": "robust_frames",
            "num_workers": 0,
        },
        "logging": {
            "folder": str(folder),
            "log_every": 2,
            "monitor_every": 2,
            "monitor_clips": 2,
            "checkpoint_every": 2,
        },
        "meta": {
            "model_name": "vit_tiny",
            "embed_dim": 24,
            "depth": 2,
            "num_heads": 2,
            "pred_depth": 1,
            "pred_emb_dim": 16,
            "init": "fan_in",
            "patch_embed_std": 0.3,
            "use_bfloat16": False,
            "accumulation_steps": 2,
        },
        "optimization": {"epochs": 3, "warmup": 1},
    }


def tiny_config(data: Path, folder: Path, *overrides: str) -> Config:
    """That config, checked, with ``section.key=value`` overrides."""
    return config_from_dict(tiny_values(data, folder), "tiny", overrides)


def train_here(config: Config, resume: bool = False) -> dict:
    """Train in this process and return the latest checkpoint."""
    train.main(Ranks(torch.device("cpu")), config, resume)
    return read_latest(config.logging.folder)


def train_until_stopped(config: Config, number: int, resume: bool = False) -> dict:
    """Train here until signal ``number``, which the caller sends; return the latest checkpoint."""
    with pytest.raises(SystemExit) as stopped:
        train.main(Ranks(torch.device("cpu")), config, resume)
    assert stopped.value.code == 128 + number
    return read_latest(config.logging.folder)


def read_latest(folder: str | Path) -> dict:
    """The latest checkpoint of a run's folder."""
    return torch.load(Path(folder) / "jepa-latest.pth.tar", weights_only=True)


def flat_weights(state: dict) -> torch.Tensor:
    """All trained and averaged numbers of a checkpoint, one vector."""
    parts = ("encoder", "predictor", "target_encoder")
    return torch.cat([v.flatten() for part in parts for v in state[part].values()])


def losses(folder: Path) -> list[float]:
    """The loss of each step."""
    with (folder / "jepa_r0.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def overflowing(train_step: Callable, at_step: int) -> Callable:
    """The training step, with a weight that no forward pass survives from ``at_step`` on."""

    def step_then_overflow(step, batches, networks, *args):
        if step == at_step:
            with torch.no_grad():
                networks.encoder.norm.weight.fill_(3e38)
        return train_step(step, batches, networks, *args)

    return step_then_overflow


def fork_server() -> ForkServerContext:
    """Return the context of a server that has imported what programs import: seconds less for each.

    The server begins here. Begun where signals are blocked, as ``launch`` and ``batches_of`` do for
    the processes they start, it would hand that down to all that is forked from it.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["main"])
    forkserver.ensure_running()
    return server


@contextmanager
def forked_workers() -> Iterator[None]:
    """Let ``launch`` fork its workers from the server, in place of starting Python for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "WORKERS", fork_server())
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, and count as deselected, what only root can run."""
    if os.geteuid() == 0:
        return
    config.hook.pytest_deselected([item for item in items if item.get_closest_marker("root")])
    items[:] = [item for item in items if not item.get_closest_marker("root")]


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Give the root logger its handlers back: programs that a test calls set up their own.

    Left there, a handler that waits for a folder would write another test's lines into its log.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], root.level = handlers, level


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests run beside each other, so one of them must not take every core."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a tiny pretraining run learns from; a test that changes it copies it first."""
    return make_data(tmp_path_factory.mktemp("data") / "synthetic")


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a small data-set folder of noise around ROI-specific levels.

    `frames` and `tr` have one value per run; people are p0, p1, ... and runs go to them in turn.
    `splits` has one value per person. `spoil(series, i)` may change run i in place.
    """

    def make(
        name: str = "data",
        *,
        n_rois: int = 12,
        frames: tuple[int, ...] = (60, 50, 70, 60, 55, 65),
        tr: tuple[float, ...] | float = 2.0,
        splits: tuple[str, ...] = ("train", "train", "train", "valid", "test"),
        spoil: Callable[[np.ndarray, int], None] | None = None,
        seed: int = 0,
    ) -> Path:
        rng = np.random.default_rng(seed)
        trs = [tr] * len(frames) if isinstance(tr, float) else tr
        people = [f"p{i}" for i in range(len(splits))]
        level, spread = rng.uniform(500, 1500, (n_rois, 1)), rng.uniform(5, 50, (n_rois, 1))
        path = tmp_path / name
        labels = [f"roi{r}" for r in range(n_rois)]
        with FolderWriter(path, roi_labels=labels, atlas="noise", provenance={}) as writer:
            for i, n in enumerate(frames):
                series = level + spread * rng.standard_normal((n_rois, n))
                if spoil is not None:
                    spoil(series, i)
                person = i % len(people)
                writer.add_run(
                    series,
                    participant_id=people[person],
                    run=str(i // len(people) + 1),
                    tr=trs[i],
                    split=splits[person],
                )
        return path

    return make
