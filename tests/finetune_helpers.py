"""A small pretrained model, a labelled cohort, and fine-tuning tasks on them."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from encoder_helpers import pretraining_run
from pretraining_helpers import ROIS

from downstream_tasks.finetune_state import LATEST, seed_folder
from downstream_tasks.pretrained import load_pretrained
from downstream_tasks.tasks import DownstreamConfig, task_from_dict
from src.datasets.folder_writer import FolderWriter
from src.utils.checkpoint import load_checkpoint

CPU = torch.device("cpu")
PEOPLE = 40


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
            "evaluation": {"num_seed": 1, "baselines": ["majority"], "n_bootstrap": 50},
            "fine_tune": {"batch_size": 8, "epochs": 4, "blr": 0.1, "use_bfloat16": False},
        }
        for name, changes in sections.items():
            values[name] = values.get(name, {}) | changes
        return task_from_dict(values, "a test")


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


def stored_weights(config: DownstreamConfig, seed: int = 0, name: str = LATEST) -> torch.Tensor:
    """All numbers of a stored state's model, one vector."""
    model = load_checkpoint(seed_folder(config, seed) / name)["model"]
    return torch.cat([value.flatten() for value in model.values()])
