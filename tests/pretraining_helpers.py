"""A tiny pretraining run that the tests of the training stack share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from src import train
from src.config import Config, config_from_dict
from src.datasets.synthetic import write_synthetic
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


def overflowing(train_step: Callable, at_step: int) -> Callable:
    """The training step, with a weight that no forward pass survives from ``at_step`` on."""

    def step_then_overflow(step, batches, networks, *args):
        if step == at_step:
            with torch.no_grad():
                networks.encoder.norm.weight.fill_(3e38)
        return train_step(step, batches, networks, *args)

    return step_then_overflow
