"""Frozen protocols: linear and attentive probe, logistic and ridge regression, nearest neighbours.

The encoder runs once over the clips; every head, seed and setting is fitted on the stored features.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save

from downstream_tasks.cohort.problem import Problem
from downstream_tasks.comparison import (
    baseline_rows,
    confound_rows,
    no_features_row,
    plain_head,
)
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.evaluation import Evaluation, describe_checkpoint, prepare
from downstream_tasks.features.encode import weights_digest
from downstream_tasks.features.registry import MODEL_NAME
from downstream_tasks.features.table import Representations
from downstream_tasks.heads.attentive_probe import AttentiveHead, attentive_probe, score_attentive
from downstream_tasks.heads.estimators import fit_head
from downstream_tasks.heads.linear_probe import fc_norm, lars_grid, published_probe
from downstream_tasks.heads.result import FittedMethod, HeadResult, LinearMap
from downstream_tasks.main_fingerprint import run_fingerprint
from downstream_tasks.report.folder import clear_results
from downstream_tasks.report.results import Results
from downstream_tasks.report.write import write_report
from downstream_tasks.studies.methods import Method
from downstream_tasks.studies.run import check_studies, run_studies
from src.utils.errors import UserError
from src.utils.files import replacing
from src.utils.logging import setup_logging

PUBLISHED_NAME, GRID_NAME = "published LARS probe", "LARS grid"

_HEAD_FILE = "head_{}.safetensors"  # name of the run


def run(config: DownstreamConfig, device: torch.device, evaluate: bool = False) -> Results:
    """Evaluate a frozen encoder as ``config.protocol`` says; write ``config.output_dir``.

    With ``evaluate`` nothing is fitted: the heads and splits that an earlier run stored there are
    read again, and the result goes to its folder ``eval``. Returns what it wrote there.

    Raises:
        UserError: on bad input of any kind.
    """
    setup_logging(config.output_dir)
    if config.protocol == "fingerprint":
        if evaluate:
            raise UserError("--eval: fingerprint stores nothing to score again; run it without.")
        return run_fingerprint(config, device)
    evaluation = prepare(config, from_stored=evaluate)
    representations = Representations(config, evaluation.cohort, evaluation.pretrained, device)
    return evaluate_frozen(evaluation, representations, evaluate)


def evaluate_frozen(
    evaluation: Evaluation, representations: Representations, evaluate: bool = False
) -> Results:
    """What :func:`run` does once everything is loaded and the splits are made."""
    config, cohort, problems = evaluation.config, evaluation.cohort, evaluation.problems
    head = head_name(config)
    checkpoint = describe_checkpoint(config, evaluation.pretrained, evaluation.pretrained_on)
    if evaluate:
        results = [read_head(representations, problem) for problem in problems]
        rows = [
            FittedMethod(MODEL_NAME, head, "model", results, "model"),
            no_features_row(cohort, problems),
        ]
        clear_results(config.output_dir / "eval")
        return write_report(
            config.output_dir / "eval",
            config,
            cohort,
            problems,
            rows,
            checkpoint,
            notes=evaluation.notes,
            settings=evaluation.settings,
        )

    check_studies(evaluation)
    results = list(map(encoded_fit(representations, "model"), problems))
    about = describe_head(representations)
    for problem, result in zip(problems, results, strict=True):
        save_head(_head_path(config, problem), result, about)
    methods = study_methods(representations, head)  # before the rows, which let go of features
    # Raw baselines have neither tokens to attend to nor a pooled token to normalise.
    fit, fit_name = partial(fit_features, config), feature_head_name(config)
    if config.protocol == "attentive_probe":
        fit, fit_name = None, ""
    corrected = confound_rows(representations, problems, fit, fit_name)
    others = baseline_rows(
        representations,
        problems,
        fit,
        fit_name,
        encoded_fit=lambda name, problem: encoded_fit(representations, name)(problem),
        encoded_head=head,
    )
    rows = [FittedMethod(MODEL_NAME, head, "model", results, "model"), *others, *corrected]
    studies = run_studies(config, problems, rows, *methods)
    return write_report(
        config.output_dir,
        config,
        cohort,
        problems,
        rows,
        checkpoint,
        notes=evaluation.notes,
        settings=evaluation.settings,
        permutations=studies.permutations,
        curve=studies.curve,
    )


def study_methods(representations: Representations, head: str) -> tuple[list[Method], list[Method]]:
    """What a permutation test is made of, and what learning curves are drawn of.

    The first are the model and FC with the head that it gets in any case; the curves have the
    untrained encoder as well, and FC with the model's head.
    """
    config = representations.config
    if not (config.evaluation.n_permutations or config.evaluation.train_sizes):
        return [], []
    baselines, plain = config.baselines, plain_head(config)
    model = Method(MODEL_NAME, head, encoded_fit(representations, "model"))
    tested, compared = [model], [model]
    if "fc" in baselines:
        title = representations.title("fc")

        def features(problem: Problem) -> np.ndarray:
            return representations.features("fc", problem)

        def fit_plain(problem: Problem) -> HeadResult:
            return fit_head(plain, features(problem), problem, config.heads)

        def fit_own(problem: Problem) -> HeadResult:
            return fit_features(config, features(problem), problem)

        fc = Method(title, plain, fit_plain)
        tested.append(fc)
        compared.append(fc)
        own = feature_head_name(config)
        if config.protocol != "attentive_probe" and own != plain:
            compared.append(Method(title, own, fit_own))
    if "random_weights" in baselines:
        title = representations.title("random_weights")
        compared.append(Method(title, head, encoded_fit(representations, "random_weights")))
    return tested, compared


def feature_head_name(config: DownstreamConfig) -> str:
    """Head of what the encoder does not compute."""
    return GRID_NAME if config.protocol == "linear_probe" else config.protocol


def head_name(config: DownstreamConfig) -> str:
    """Head of what the encoder computes."""
    if _is_published(config):
        return PUBLISHED_NAME
    return "attention" if config.protocol == "attentive_probe" else feature_head_name(config)


def _is_published(config: DownstreamConfig) -> bool:
    return config.protocol == "linear_probe" and config.linear_probe.recipe == "published"


def fit_features(config: DownstreamConfig, features: np.ndarray, problem: Problem) -> HeadResult:
    """The protocol's head on features ``[n_examples, F]`` of any kind.

    The published probe begins with a LayerNorm of pooled tokens, which other features are not: they
    get the grid.
    """
    if config.protocol == "linear_probe":
        return lars_grid(features, problem, config.linear_probe)
    return fit_head(config.protocol, features, problem, config.heads)


def encoded_fit(representations: Representations, name: str) -> Callable[[Problem], HeadResult]:
    """The protocol's head on a representation of the encoder: ``model``, or a baseline's name."""

    def fit(problem: Problem) -> HeadResult:
        own, config = representations.of(problem), representations.config
        if _is_published(config):
            features = representations.features(name, problem)
            return published_probe(features, problem, config.linear_probe)
        if config.protocol != "attentive_probe":
            return fit_features(config, representations.features(name, problem), problem)
        return attentive_probe(
            own.encoded(name, "token"),
            own.clips.example_of_item,
            problem,
            config.attentive_probe,
            own.device,
        )

    return fit


# --- stored heads --------------------------------------------------------------------------------


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
    path = _head_path(config, problem)
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
        features = fc_norm(features) if _is_published(config) else features
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


def _head_path(config: DownstreamConfig, problem: Problem) -> Path:
    return config.output_dir / _HEAD_FILE.format(problem.name)
