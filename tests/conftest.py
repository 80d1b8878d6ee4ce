"""Fixtures that several test files share."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pretraining_helpers import make_data

from src.datasets.folder import FolderWriter


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, and count as deselected, what only root can run."""
    if os.geteuid() == 0:
        return
    config.hook.pytest_deselected([item for item in items if item.get_closest_marker("root")])
    items[:] = [item for item in items if not item.get_closest_marker("root")]


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
