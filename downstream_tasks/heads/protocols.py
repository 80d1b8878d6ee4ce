"""The head of each frozen protocol, by the name of the protocol."""

from collections.abc import Callable

import numpy as np

from downstream_tasks.cohort.problem import Problem
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.features.table import Representations
from downstream_tasks.heads.attentive_probe import attentive_probe
from downstream_tasks.heads.estimators import fit_head
from downstream_tasks.heads.linear_probe import lars_grid, published_probe
from downstream_tasks.heads.result import HeadResult

PUBLISHED_NAME, GRID_NAME = "published LARS probe", "LARS grid"


def feature_head_name(config: DownstreamConfig) -> str:
    """Head of what the encoder does not compute."""
    return GRID_NAME if config.protocol == "linear_probe" else config.protocol


def head_name(config: DownstreamConfig) -> str:
    """Head of what the encoder computes."""
    if is_published(config):
        return PUBLISHED_NAME
    return "attention" if config.protocol == "attentive_probe" else feature_head_name(config)


def is_published(config: DownstreamConfig) -> bool:
    """Whether the head is the published linear probe (method 8.14)."""
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
        if is_published(config):
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
