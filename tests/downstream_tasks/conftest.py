"""Small cohorts, checkpoints of every kind and fine-tuning tasks for the evaluation's tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.config_checks import task_from_dict
from downstream_tasks.finetune_state import LATEST, state_folder
from src.config import config_from_dict
from src.datasets.folder import DataFolder
from src.datasets.folder.writer import FolderWriter
from src.helper import init_model
from src.models.downstream_vit import DownstreamViT
from src.models.vision_transformer import VisionTransformer
from src.pretrained.load import load_pretrained
from src.utils.checkpoint import NETWORKS, load_checkpoint, network_state, save_checkpoint
from tests.conftest import ROIS, make_data, tiny_config, train_here

REFERENCE = Path(__file__).parents[1] / "reference"


def pretraining_run(folder: Path, *overrides: str) -> tuple[Path, Path]:
    """Pretrain for a second on twelve synthetic people: (data folder, run folder)."""
    data = make_data(folder / "data")
    config = tiny_config(data, folder / "run", *overrides)
    train_here(config)
    return data, folder / "run"


def reference(name: str, folder: Path) -> tuple[Path, dict[str, np.ndarray], dict]:
    """A reference file, its arrays, and the flags that say what the file does not."""
    arrays = dict(np.load(REFERENCE / f"{name}.npz"))
    csv = folder / f"{name}.csv"
    np.savetxt(csv, arrays["gradient"], delimiter=",")
    suffix = ".pth" if name == "tiny_finetuned" else ".pth.tar"
    heads = int(arrays["config"][3])
    return (
        REFERENCE / f"{name}{suffix}",
        arrays,
        {"num_heads": heads, "gradient_csv_path": csv},
    )


def make_cohort(
    y: np.ndarray,
    *,
    classes: tuple[str, ...] = (),
    runs: int = 1,
    families: list[str] | None = None,
    split: list[str] | None = None,
    columns: dict[str, list] | None = None,
) -> Cohort:
    """A cohort of len(y) people with ``runs`` runs each, examples in person order.

    ``columns`` have a value per person.
    """
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
        examples,
        np.asarray(y)[repeat],
        classes,
        pd.DataFrame({"participant_id": people}),
        table=pd.DataFrame(columns or {}, index=range(len(y))).iloc[repeat].reset_index(drop=True),
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


def write_checkpoint(
    path: Path, data: Path, crop_size: tuple[int, int] = (12, 16), **meta: Any
) -> Path:
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
            | {"seed": 1}  # not that of the untrained baseline
            | meta,
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


CPU = torch.device("cpu")
PEOPLE = 40


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Forty labelled people with a run each, and a checkpoint for them."""
    folder = tmp_path_factory.mktemp("small")
    data = labelled_folder(folder / "data")
    return data, write_checkpoint(folder / "jepa-latest.pth.tar", data)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Clips that went through any encoder."""
    seen = []
    forward = VisionTransformer.forward

    def counting(self, x, masks=None):
        seen.extend([0] * len(x))
        return forward(self, x, masks)

    monkeypatch.setattr(VisionTransformer, "forward", counting)
    return seen


@pytest.fixture
def drop_rates(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """Drop path rates of the blocks, each time that a network is put in training mode."""
    rates = []
    train = DownstreamViT.train

    def recording(self, mode=True):
        rates.append([getattr(block.drop_path1, "drop_prob", 0.0) for block in self.encoder.blocks])
        return train(self, mode)

    monkeypatch.setattr(DownstreamViT, "train", recording)
    return rates


class Rehearsal:
    """What the fine-tuning tests share.

    Attributes:
        checkpoint: folder of a pretraining run of a second.
        data: forty people; half of the ROIs are higher in group b, the other half rise with age.
    """

    def __init__(self, folder: Path) -> None:
        self.checkpoint = pretraining_run(folder / "pretrained")[1]
        self.data = folder / "cohort"
        write_cohort(self.data, load_pretrained(self.checkpoint).roi_labels)

    def task(self, output: Path, **sections: dict) -> DownstreamConfig:
        """Four epochs of three steps; ``sections`` change keys of the task."""
        values = {
            "name": "groups",
            "protocol": "fine_tune",
            "output_root": str(output),
            "data": {
                "data_path": str(self.data),
                "target": "group",
                "normalization": "none",
                "num_workers": 0,
            },
            "model": {"load_path": str(self.checkpoint)},
            "evaluation": {"num_seed": 1, "baselines": ["majority"], "n_exchanges": 50},
            "fine_tune": {"batch_size": 8, "epochs": 4, "blr": 0.1, "use_bfloat16": False},
        }
        for name, changes in sections.items():
            values[name] = values.get(name, {}) | changes
        return task_from_dict(values, "a test")


@pytest.fixture(scope="session")
def rehearsal(tmp_path_factory) -> Rehearsal:
    """One for all tests: they read it and write into folders of their own."""
    return Rehearsal(tmp_path_factory.mktemp("rehearsal"))


@pytest.fixture
def make_config(rehearsal, tmp_path) -> Callable[..., DownstreamConfig]:
    """A task of :class:`Rehearsal` that writes into the test's own folder."""
    return lambda output="out", **sections: rehearsal.task(tmp_path / output, **sections)


def write_cohort(path: Path, labels: tuple[str, ...]) -> None:
    """Columns ``group`` (a, b), ``few`` (8 of 40 are b), ``age``; events of two states."""
    rng = np.random.default_rng(0)
    events = []
    with FolderWriter(path, roi_labels=labels, atlas="synthetic", provenance={}) as writer:
        for i in range(PEOPLE):
            group, age = "ab"[i % 2], 20.0 + i
            series = rng.standard_normal((ROIS, 90))
            series[::2] += 2.0 if group == "b" else -2.0
            series[1::2] += (age - 40) / 10
            person = f"sub-{i:02d}"
            labelled = {"group": group, "age": age, "few": "ab"[i > 31]}
            writer.add_run(series, participant_id=person, tr=2.0, **labelled)
            for onset, state in ((4, "ab"[i % 2]), (30, "ba"[i % 2])):
                keys = {"participant_id": person, "session": "01", "run": "01"}
                events.append(keys | {"onset": onset, "state": state})
    pd.DataFrame(events).to_csv(path / "events.tsv", sep="\t", index=False)


def stored_weights(
    config: DownstreamConfig, seed: int = 0, name: str = LATEST, control: str = "model"
) -> torch.Tensor:
    """All numbers of a stored state's model, one vector."""
    model = load_checkpoint(state_folder(config, f"seed{seed}", control) / name)["model"]
    return torch.cat([value.flatten() for value in model.values()])
