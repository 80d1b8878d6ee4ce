"""What a fitted head gives: scores of every example, and the head itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit, softmax

from downstream_tasks.cohort.problem import Problem
from downstream_tasks.features.registry import Kind

_CHUNK = 1024  # examples


@dataclass(frozen=True)
class LinearMap:
    """A fitted linear head on the features as given: standardisation is folded in.

    ``weight`` ``[C, F]`` and ``bias`` ``[C]``; C is 1 for regression and for the log odds of the
    second of two classes.
    """

    weight: np.ndarray
    bias: np.ndarray

    @property
    def n_parameters(self) -> int:
        """Weights and biases."""
        return self.weight.size + self.bias.size

    def scores(self, features: np.ndarray, n_classes: int) -> np.ndarray:
        """Probabilities ``[n, C]``, or predictions ``[n]`` (z-scored) if ``n_classes`` is 0."""
        raw = np.empty((len(features), len(self.weight)))
        for start in range(0, len(features), _CHUNK):  # a copy in float64 of a part at a time
            part = slice(start, start + _CHUNK)
            raw[part] = features[part].astype(np.float64) @ self.weight.T + self.bias
        if n_classes == 0:
            return raw[:, 0]
        if raw.shape[1] == 1:
            positive = expit(raw)
            return np.hstack([1 - positive, positive])
        return softmax(raw, axis=1)


@dataclass(frozen=True)
class HeadResult:
    """One fitted head.

    Attributes:
        scores: of *every* example, ``[n, C]`` probabilities or ``[n]`` z-scored predictions.
        chosen: hyper-parameters (and epoch) picked without the test people.
        history: one row per epoch of the chosen setting, for heads that are trained.
        linear: the head itself, if it is a linear map of the features.
        weights: its parameters by name, if it is something else that was trained.
        notes: what qualifies this fit: a setting at the edge of its grid, a solver that did not
            converge, one and the same prediction for everyone.
        trained_parameters: how many numbers were fitted, where that is of interest.
    """

    scores: np.ndarray
    chosen: dict[str, float]
    history: list[dict[str, float]] = field(default_factory=list)
    linear: LinearMap | None = None
    weights: dict[str, np.ndarray] | None = None
    notes: tuple[str, ...] = ()
    trained_parameters: int | None = None

    @property
    def n_trained(self) -> int | None:
        """``trained_parameters``, or those of the linear map; ``None`` where nothing is known."""
        if self.trained_parameters is None and self.linear is not None:
            return self.linear.n_parameters
        return self.trained_parameters


def edge_notes(
    chosen: Mapping[str, float], grids: Mapping[str, Sequence[float]]
) -> tuple[str, ...]:
    """Chosen settings that are the smallest or largest of their grid, which may be too narrow.

    ``grids`` holds the values tried, by the name of the setting. None is below 0.
    """
    return tuple(
        f"{name} {chosen[name]:g} is at the edge of its grid"
        for name, values in grids.items()
        if len(values) > 1 and chosen[name] in {min(values), max(values)} - {0}
    )


@dataclass(frozen=True)
class FittedMethod:
    """A representation, a head, and what it gave in every run: what becomes a line of the table.

    ``results`` has one entry per problem (seed). Scores of examples outside the test part are not
    looked at and may be NaN. ``representation`` is its name in the registry of features, if any;
    ``problems`` are those it was fitted on where its target is not that of the other rows;
    ``confounds_removed``: from its features, or from that target.
    """

    name: str
    head: str
    kind: Kind
    results: Sequence[HeadResult]
    representation: str = ""
    problems: Sequence[Problem] | None = None
    confounds_removed: bool = False
