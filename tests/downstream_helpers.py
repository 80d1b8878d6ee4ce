"""Small cohorts, data folders and checkpoints for the tests of the downstream evaluation."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from downstream_tasks.cohort import Cohort
from src.config import config_from_dict
from src.datasets.folder import DataFolder
from src.datasets.folder_writer import FolderWriter
from src.helper import init_model
from src.utils.checkpoint import NETWORKS, network_state, save_checkpoint


def make_cohort(
    y: np.ndarray,
    *,
    classes: tuple[str, ...] = (),
    runs: int = 1,
    families: list[str] | None = None,
    split: list[str] | None = None,
) -> Cohort:
    """A cohort of len(y) people with ``runs`` runs each, examples in person order."""
    people = [f"sub-{i:03d}" for i in range(len(y))]
    repeat = np.repeat(np.arange(len(y)), runs)
    examples = pd.DataFrame(
        {
            "row": np.arange(len(repeat)),
            "start": -1,
            "participant_id": np.array(people)[repeat],
            "split": np.array(split or ["train"] * len(y))[repeat],
            "group": np.array(families or people)[repeat],
            "unit": repeat,
        }
    )
    return Cohort(
        examples, np.asarray(y)[repeat], classes, pd.DataFrame({"participant_id": people})
    )


def separable(n: int, n_features: int, effect: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features ``[n, F]`` and two balanced classes ``effect`` SD apart in the first feature."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.normal(size=(n, n_features)).astype(np.float32)
    x[:, 0] += effect * y
    return x, y


def labelled_folder(path: Path, people: int = 40, frames: int = 30, runs: int = 1) -> Path:
    """Twelve ROIs: sex is in the correlation of the first six, age in the spread of the seventh.

    Families of two share nothing but their name; `dx` is missing for the first person.
    """
    rng = np.random.default_rng(0)
    with FolderWriter(
        path, roi_labels=[f"roi{r}" for r in range(12)], atlas="test", provenance={}
    ) as writer:
        for i in range(people):
            age = float(rng.integers(20, 80))
            for run in range(runs):
                series = rng.normal(size=(12, frames)) + 10 * np.arange(12)[:, None]
                if i % 2:
                    series[1:6] = series[0] + 0.5 * series[1:6]
                series[6] *= age / 20
                writer.add_run(
                    series,
                    participant_id=f"p{i:02d}",
                    run=f"{run + 1:02d}",
                    tr=2.0,
                    split=("train", "train", "train", "valid", "test")[i // 2 % 5],
                    sex="M" if i % 2 else "F",
                    age=age,
                    dx=None if i == 0 else "NC",
                    family_id=f"f{i // 2:02d}",
                )
    return path


def write_checkpoint(path: Path, data: Path, crop_size: tuple[int, int] = (12, 16)) -> Path:
    """An untrained encoder 24 wide, 2 deep, patch 4, as a checkpoint of this project."""
    config = config_from_dict(
        {
            "data": {
                "data_dir": str(data),
                "crop_size": list(crop_size),
                "normalization": "zscore_roi",
            },
            "mask": {"patch_size": 4},
            "meta": {"model_name": "vit_tiny", "embed_dim": 24, "depth": 2, "num_heads": 3}
            | {"add_w": "origin", "pred_depth": 1, "pred_emb_dim": 24, "init": "fan_in"}
            | {"seed": 1},  # not that of the untrained baseline
        },
        "test",
    )
    networks = init_model(config, None, torch.device("cpu"))
    folder = DataFolder(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(
        path,
        {name: network_state(getattr(networks, name)) for name in NETWORKS}
        | {
            "epoch": 1,
            "step": 1,
            "config": config.to_dict(),
            **config.clip_input.to_state(),
            "roi_labels": list(folder.roi_labels),
            "atlas": folder.atlas,
            "training_people": sorted(set(folder.runs["participant_id"][folder.rows("train")])),
        },
    )
    return path
