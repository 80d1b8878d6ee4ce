"""Heads in files: written with what they belong to, read again for what they belong to only."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save

from downstream_tasks.cohort.problem import Problem
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.features.encode import weights_digest
from downstream_tasks.features.table import Representations
from downstream_tasks.heads.attentive_probe import AttentiveHead, score_attentive
from downstream_tasks.heads.linear_probe import fc_norm
from downstream_tasks.heads.protocols import head_name, is_published
from downstream_tasks.heads.result import HeadResult, LinearMap
from src.utils.errors import UserError
from src.utils.files import replacing

_HEAD_FILE = "head_{}.safetensors"  # name of the run


def describe_head(representations: Representations) -> dict[str, str]:
    """What a stored head belongs to: encoder, features, task and the order of the classes."""
    config = representations.config
    return {
        "encoder": weights_digest(representations.pretrained.encoder),
        "protocol": config.protocol,
        "head": head_name(config),
        "level": "token" if config.protocol == "attentive_probe" else config.evaluation.level,
        "type": config.data.type,
        "target": config.data.target,
        "classes": json.dumps(representations.cohort.classes),
        "harmonised": json.dumps([config.data.harmonize, *config.data.harmonize_keep]),
    }


def save_head(path: Path, result: HeadResult, about: Mapping[str, str]) -> None:
    """Write the weights of a trained head and what it belongs to; nearest neighbours have none."""
    arrays = result.weights
    if result.linear is not None:
        arrays = {"linear.weight": result.linear.weight, "linear.bias": result.linear.bias}
    if arrays is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        contiguous = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        with replacing(path) as file:
            file.write(save(contiguous, {"chosen": str(result.chosen), **about}))


def read_head(representations: Representations, problem: Problem) -> HeadResult:
    """Score every example with the head that an earlier run stored.

    Raises:
        UserError: if there is none, or it is of another encoder, kind of features or task.
    """
    representations = representations.of(problem)
    config, n_classes = representations.config, problem.target.n_classes
    path = head_path(config, problem)
    if not path.is_file():
        raise UserError(
            f"no stored head {path}: run {config.protocol} without --eval first (knn has no "
            "weights to store; run it again instead, it gives the same numbers)."
        )
    _check_head(path, describe_head(representations))
    arrays = load_file(path)
    if "linear.weight" in arrays:
        linear = LinearMap(arrays["linear.weight"], arrays["linear.bias"])
        features = representations.features("model", problem)
        features = fc_norm(features) if is_published(config) else features
        scores = linear.scores(features, n_classes)
        return HeadResult(scores, {}, linear=linear)
    tokens = representations.encoded("model", "token")
    settings = config.attentive_probe
    head = AttentiveHead(tokens.shape[2], max(1, n_classes), settings.num_heads)
    try:
        head.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    except RuntimeError as error:
        raise UserError(
            f"{path} does not fit this encoder or task: {' '.join(str(error).split())}"
        ) from error
    scores = score_attentive(
        head.eval(),
        tokens,
        representations.clips.example_of_item,
        problem,
        settings.batch_size,
        representations.device,
    )
    return HeadResult(scores, {}, weights=arrays)


def _check_head(path: Path, expected: Mapping[str, str]) -> None:
    """Refuse a head that belongs to something else: shapes often agree where meaning does not."""
    with safe_open(path, "numpy") as file:
        stored = file.metadata() or {}
    if differences := [
        f"{name} was {stored.get(name, 'not stored')[:60]}, is {value[:60]}"
        for name, value in expected.items()
        if stored.get(name) != value
    ]:
        raise UserError(
            f"--eval: {path} is the head of another evaluation: {'; '.join(differences)}. Give "
            "the checkpoint and task it was fitted with, or run again without --eval."
        )


def head_path(config: DownstreamConfig, problem: Problem) -> Path:
    """Where the head of a run is stored."""
    return config.output_dir / _HEAD_FILE.format(problem.name)
