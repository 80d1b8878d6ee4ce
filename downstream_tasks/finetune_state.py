"""What a fine-tuning run keeps on disk: the state to resume from, and the epoch that was best.

    RUN/finetune-latest.pth.tar   model, optimizer, step, history: after an epoch, or a signal
    RUN/finetune-best.pth.tar     the model of the chosen epoch; --eval and --load_path read it
    RUN/adapters/                 of fine_tune.lora_rank: adapters and head of that epoch, for PEFT
    RUN/metrics.jsonl             a line per epoch
    controls/NAME/RUN/            the same of a control

RUN is ``seed0``, or ``seed0_fold2`` (:attr:`Problem.name`).

Both states are the release's fine-tuned files (``model``, ``optimizer``, ``epoch``, ``scaler``)
with what makes them self-contained: ``provenance`` (encoder, input, training people), ``task`` and
the participants' ``split``.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from downstream_tasks.adapters import FOLDER, merged_state, trained_state, write_adapters
from downstream_tasks.cohort.clips import ExampleClips
from downstream_tasks.cohort.problem import Problem
from downstream_tasks.cohort.splits import run_name
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.features.encode import weights_digest
from downstream_tasks.scoring.metrics import selection_key
from src.datasets.input_profile import InputProfile
from src.pretrained.encoder import Pretrained
from src.utils.checkpoint import load_checkpoint, load_network, require_keys, save_checkpoint
from src.utils.distributed import Ranks
from src.utils.errors import UserError
from src.utils.files import replacing
from src.utils.logging import git_revision
from src.utils.yaml_config import differences, merge

LATEST = "finetune-latest.pth.tar"
BEST = "finetune-best.pth.tar"

# Sections of the config that a run and its continuation must share, and keys that they need not.
_FIXED_SECTIONS = ("data", "split", "model", "fine_tune")
_FREE_KEYS = {
    "data.num_workers",
    "data.data_path",
    "model.attn_mode",
    "fine_tune.gradient_checkpointing",
    "fine_tune.batch_size",  # their product with the number of devices must stay
    "fine_tune.accumulation_steps",
}


def state_folder(config: DownstreamConfig, run: str, name: str = "model") -> Path:
    """Where the states of a run (:attr:`Problem.name`) are, of the model or of a control."""
    above = config.output_dir if name == "model" else config.output_dir / "controls" / name
    return above / run


def stored_states(
    config: DownstreamConfig, seed: int, file: str, name: str = "model"
) -> list[Path]:
    """The states ``file`` of ``seed``, of every fold, in the order of the folds."""
    whole = state_folder(config, run_name(seed), name) / file
    folds = whole.parent.parent.glob(f"{run_name(seed)}_fold*/{file}")
    return [
        *([whole] if whole.is_file() else []),
        *sorted(folds, key=lambda path: int(path.parent.name.rpartition("fold")[2])),
    ]


def refuse_stored_run(folder: Path) -> None:
    """Raise :class:`UserError` if ``folder`` holds the state of a run, which would be lost."""
    if (folder / LATEST).exists():
        raise UserError(
            f"{folder} already holds a run ({LATEST}). Go on with it by --resume, or "
            "write elsewhere: --output_root."
        )


@dataclass
class Progress:
    """How far a run is, in plain values.

    Attributes:
        step: optimizer steps taken.
        losses: of the steps of the epoch under way.
        history: one row per finished epoch.
        best_epoch, best_score, best_loss: of the chosen epoch so far; epoch 0 means none.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = math.nan
    best_loss: float = math.nan

    def end_epoch(self, score: float, loss: float, lr: float, metric: str) -> bool:
        """Record an epoch's validation; return whether it is better than all before."""
        epoch = len(self.history) + 1
        train_loss = math.fsum(self.losses) / len(self.losses)
        self.losses = []
        self.history.append(
            {
                "epoch": epoch,
                "train_loss": train_loss,
                "valid_loss": loss,
                f"valid_{metric}": score,
                "lr": lr,
            }
        )
        best = (-math.inf, -math.inf)
        if self.best_epoch:
            best = selection_key(metric, self.best_score, self.best_loss)
        improved = selection_key(metric, score, loss) > best
        if improved:
            self.best_epoch, self.best_score, self.best_loss = epoch, score, loss
        return improved

    def summary(self) -> str:
        """The last epoch in words."""
        row = self.history[-1]
        numbers = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "epoch")
        return f"epoch {row['epoch']}: {numbers} (best: epoch {self.best_epoch})"


class StateFolder:
    """The states of one run of the model, or of a control, which ``name`` tells."""

    def __init__(
        self,
        folder: Path,
        config: DownstreamConfig,
        problem: Problem,
        pretrained: Pretrained,
        clips: ExampleClips,
        ranks: Ranks,
        name: str = "model",
        trained_parameters: int | None = None,
    ) -> None:
        self.folder, self.config, self.problem, self.ranks = folder, config, problem, ranks
        self.rank = config.fine_tune.lora_rank
        self.adapted = weights_digest(pretrained.encoder) if self.rank else ""
        self.about = {
            "provenance": dataclasses.replace(
                pretrained,
                clip_input=clips.dataset.clip_input,
                input_profile=InputProfile.from_dataset(clips.dataset),
            ).provenance(),
            "task": _describe_task(config, problem, clips)
            | {"control": name, "trained_parameters": trained_parameters},
            "split": _people(problem),
            "config": config.to_dict(),
            "effective_batch": effective_batch(config, ranks),
            "revision": git_revision(),
        }

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer, resume: bool) -> Progress:
        """Progress of a new run, or that of the stored one, whose state is put in place.

        Raises:
            UserError: if there is a state and ``resume`` is not set, or it is of another run.
        """
        path = self.folder / LATEST
        if not path.exists():
            return Progress()
        if not resume:
            refuse_stored_run(self.folder)
        state = load_checkpoint(path)
        require_keys(state, ("model", "optimizer", "progress", *self.about), path)
        self._check_same_run(state, path)
        if self.rank:
            self._load_adapters(model, state, path)
        else:
            load_network(model, state["model"], path, "fine-tuned model")
        optimizer.load_state_dict(state["optimizer"])
        return Progress(**state["progress"])

    def write(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        improved: bool,
    ) -> None:
        """Write the latest state and, if it ``improved``, the best; every rank calls this."""
        if self.ranks.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            state = {
                "model": merged_state(model),
                "optimizer": None,
                "scaler": None,
                "epoch": len(progress.history),
                **self.about,
            }
            chosen = {"epoch": progress.best_epoch, "valid_score": progress.best_score}
            state["task"] = self.about["task"] | chosen
            if improved:
                save_checkpoint(self.folder / BEST, state)
                if self.rank:
                    write_adapters(self.folder / FOLDER, model, self.config.fine_tune)
            if self.rank:
                state |= {"adapters": trained_state(model), "adapted": self.adapted}
            plain = dataclasses.asdict(progress)
            state |= {"optimizer": optimizer.state_dict(), "progress": plain}
            save_checkpoint(self.folder / LATEST, state)
            with replacing(self.folder / "metrics.jsonl") as file:
                file.writelines(json.dumps(row).encode() + b"\n" for row in progress.history)
        self.ranks.barrier()

    def _load_adapters(self, model: nn.Module, state: Mapping[str, Any], path: Path) -> None:
        """Put stored adapters and head into ``model``, whose frozen weights are not theirs to set.

        The plain weights in the file are merged: from them the two matrices cannot be told.
        """
        require_keys(state, ("adapters", "adapted"), path)
        if state["adapted"] != self.adapted:
            raise UserError(
                f"cannot resume from {path}: its adapters were trained beside other weights than "
                f"those of {self.config.model.load_path}. Give the checkpoint that it began with, "
                "or another --output_root."
            )
        model.load_state_dict(state["adapters"], strict=False)

    def _check_same_run(self, state: Mapping[str, Any], path: Path) -> None:
        found = differences(_identity(self.about), _identity(state), _FREE_KEYS)
        if self.about["split"] != state["split"]:
            found.append("the people of the split are others")
        if found:
            raise UserError(
                f"cannot resume from {path}: {'; '.join(found)}. Use the values of the "
                "stored run, or another --output_root."
            )


def _identity(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a run and its continuation share, of what is stored about a run."""
    # A key that came after the stored run has its default there.
    config = merge(DownstreamConfig().to_dict(), about["config"])
    return {
        **{section: config[section] for section in _FIXED_SECTIONS},
        # The metric as resolved: unset and the task's default are the same run.
        "evaluation": {
            "metric": about["task"]["metric"],
            "clips": config["evaluation"]["clips"],
            "class_weights": config["evaluation"]["class_weights"],
        },
        "batch_size x accumulation_steps x devices": about["effective_batch"],
    }


def effective_batch(config: DownstreamConfig, ranks: Ranks) -> int:
    """Clips of an optimizer step."""
    ft = config.fine_tune
    return ft.batch_size * ft.accumulation_steps * ranks.world_size


def _describe_task(
    config: DownstreamConfig, problem: Problem, clips: ExampleClips
) -> dict[str, Any]:
    """What the outputs mean, in plain values; nothing about any person."""
    target = problem.target
    return {
        "name": config.name,
        "type": config.data.type,
        "target": config.data.target,
        "unit": config.data.unit,
        "classes": list(problem.cohort.classes),
        "target_mean": target.mean,
        "target_scale": target.scale,
        "seed": problem.seed,
        "fold": problem.fold,
        "metric": problem.metric,
        "patch": config.data.scored_patch if clips.has_events else None,
    }


def _people(problem: Problem) -> dict[str, list[str]]:
    """Part -> ids of its people."""
    people = problem.cohort.people
    return {part: sorted(set(people[members])) for part, members in problem.split.parts().items()}
