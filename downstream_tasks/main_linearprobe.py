"""Frozen protocols: linear and attentive probe, logistic and ridge regression, nearest neighbours.

The encoder runs once over the clips; every head, seed and setting is fitted on the stored features.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from downstream_tasks.comparison import (
    MODEL_NAME,
    Representations,
    baseline_rows,
    no_features_row,
)
from downstream_tasks.fingerprint import run_fingerprint
from downstream_tasks.heads import HeadResult, LinearMap, Problem, Row, fit_head
from downstream_tasks.probes import AttentiveHead, attentive_probe, lars_probe, score_attentive
from downstream_tasks.report import write_report
from downstream_tasks.setup import describe_checkpoint, prepare
from downstream_tasks.tasks import DownstreamConfig
from src.utils.errors import UserError
from src.utils.logging import setup_logging

HEAD_NAMES = {"linear_probe": "LARS", "attentive_probe": "attention"}

logger = logging.getLogger(__name__)


def run(config: DownstreamConfig, device: torch.device, evaluate: bool = False) -> dict[str, Any]:
    """Evaluate a frozen encoder as ``config.protocol`` says; write ``config.output_dir``.

    With ``evaluate`` nothing is fitted: the heads and splits that an earlier run stored there are
    read again, and the result goes to its folder ``eval``. Returns what ``results.json`` holds.

    Raises:
        UserError: on bad input of any kind.
    """
    setup_logging(config.output_dir)
    if config.protocol == "fingerprint":
        return run_fingerprint(config, device)
    evaluation = prepare(config, stored_splits=evaluate)
    cohort, problems = evaluation.cohort, evaluation.problems
    representations = Representations(config, cohort, evaluation.pretrained, device)
    head = HEAD_NAMES.get(config.protocol, config.protocol)
    checkpoint = describe_checkpoint(config, evaluation.pretrained)
    if evaluate:
        results = [read_head(representations, problem) for problem in problems]
        rows = [Row(MODEL_NAME, head, "model", results), no_features_row(cohort, problems)]
        return write_report(config.output_dir / "eval", config, cohort, problems, rows, checkpoint)

    results = [fit_encoded(representations, "model", problem) for problem in problems]
    for problem, result in zip(problems, results, strict=True):
        save_head(_head_path(config, problem), result)
    if config.protocol == "attentive_probe":  # raw baselines have no tokens to attend to
        others = baseline_rows(
            representations,
            problems,
            encoded_head=head,
            encoded_fit=lambda name, problem: fit_encoded(representations, name, problem),
        )
    else:
        others = baseline_rows(
            representations, problems, lambda x, problem: fit_features(config, x, problem), head
        )
    rows = [Row(MODEL_NAME, head, "model", results), *others]
    return write_report(config.output_dir, config, cohort, problems, rows, checkpoint)


def fit_features(config: DownstreamConfig, features: np.ndarray, problem: Problem) -> HeadResult:
    """The protocol's head on features ``[n_examples, F]``."""
    if config.protocol == "linear_probe":
        return lars_probe(features, problem, config.linear_probe)
    return fit_head(config.protocol, features, problem, config.heads)


def fit_encoded(representations: Representations, name: str, problem: Problem) -> HeadResult:
    """The protocol's head on a representation of the encoder: ``model``, or a baseline's name."""
    config = representations.config
    if config.protocol != "attentive_probe":
        return fit_features(config, representations.features(name), problem)
    return attentive_probe(
        representations.encoded(name, "token"),
        representations.clips.example_of_item,
        problem,
        config.attentive_probe,
        representations.device,
    )


# --- stored heads --------------------------------------------------------------------------------


def save_head(path: Path, result: HeadResult) -> None:
    """Write the weights of a trained head; nearest neighbours have none."""
    arrays = result.weights
    if result.linear is not None:
        arrays = {"linear.weight": result.linear.weight, "linear.bias": result.linear.bias}
    if arrays is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        contiguous = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        save_file(contiguous, path, {"chosen": str(result.chosen)})


def read_head(representations: Representations, problem: Problem) -> HeadResult:
    """Score every example with the head that an earlier run stored.

    Raises:
        UserError: if there is none, or it is of another encoder or number of classes.
    """
    config, n_classes = representations.config, problem.target.n_classes
    path = _head_path(config, problem)
    if not path.is_file():
        raise UserError(
            f"no stored head {path}: run {config.protocol} without --eval first (knn has no "
            "weights to store; run it again instead, it gives the same numbers)."
        )
    arrays = load_file(path)
    if "linear.weight" in arrays:
        features = representations.features("model")
        linear = LinearMap(arrays["linear.weight"], arrays["linear.bias"])
        fits = linear.weight.shape[1] == features.shape[1]
        fits = fits and len(linear.weight) in ({1} if n_classes == 0 else {1, n_classes})
        if not fits:
            raise UserError(
                f"{path} has shape {linear.weight.shape}; the encoder gives {features.shape[1]} "
                f"features and the task has {n_classes or 1} outputs: another model or task."
            )
        return HeadResult(linear.scores(features, n_classes), {}, linear=linear)
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


def _head_path(config: DownstreamConfig, problem: Problem) -> Path:
    return config.output_dir / f"head_seed{problem.seed}.safetensors"
