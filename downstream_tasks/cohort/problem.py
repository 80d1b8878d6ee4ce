"""One run of an evaluation: who is in which part, what is predicted, what picks a setting."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.splits import Split, run_name
from downstream_tasks.cohort.survival import check_training_events
from downstream_tasks.scoring.design import Design
from downstream_tasks.scoring.metrics import direction
from downstream_tasks.scoring.weighted import ScoredRun, weighted_metrics
from src.utils.errors import UserError


@dataclass(frozen=True)
class Target:
    """What heads are trained on.

    Attributes:
        y: ``[n_examples]`` class numbers, or targets z-scored on training statistics.
        mean, scale: of the training people, in the target's unit (0 and 1 for classes).
        n_classes: 0 for regression and survival.
        survival: ``y`` are signed times to an event (``scoring.survival``).
    """

    y: np.ndarray
    mean: float = 0.0
    scale: float = 1.0
    n_classes: int = 0
    survival: bool = False

    def normalise(self, y: np.ndarray) -> np.ndarray:
        """Targets in their own unit as heads see them; class numbers as they are."""
        return y if self.n_classes else (y - self.mean) / self.scale


@dataclass(frozen=True)
class Problem:
    """One run of an evaluation: who is in which part, what to predict, what picks a setting.

    ``fold`` is the number of the test fold where every person is tested once per seed, ``draw``
    that of the training set where few events are labelled (:mod:`cohort.few_shot`).
    ``balanced``: whether the classes count alike in training, whatever the head.
    """

    cohort: Cohort
    split: Split
    target: Target
    metric: str
    seed: int
    fold: int | None = None
    balanced: bool = False
    draw: int | None = None

    @property
    def name(self) -> str:
        """``seed0``, ``seed0_fold2`` or ``seed0_draw7``: names the files of this run."""
        return run_name(self.seed, self.fold, self.draw)

    @property
    def class_weights(self) -> np.ndarray | None:
        """Weight of each class in training, ``[C]``; ``None`` if all examples count alike."""
        if not (self.balanced and self.target.n_classes):
            return None
        return class_weights(self.target.y[self.split.train], self.target.n_classes)


def make_target(cohort: Cohort, split: Split, normalise: bool = True) -> Target:
    """Class numbers, signed times, or the target z-scored on the training units (method 7)."""
    if cohort.is_classification:
        counts = np.bincount(cohort.y[split.train], minlength=len(cohort.classes))
        if not counts.all():
            raise UserError(
                f"no training person is in class '{cohort.classes[int(counts.argmin())]}'; "
                "draw another split (split.source: random, or another split.seed)."
            )
        return Target(cohort.y, n_classes=len(cohort.classes))
    if cohort.survival:
        check_training_events(cohort, split)
        return Target(cohort.y, survival=True)
    if not normalise:
        return Target(cohort.y)
    _, _, y = cohort.unit_mean(np.zeros(len(split.train)), split.train)
    mean, scale = float(y.mean()), float(y.std())
    if scale == 0:
        raise UserError(f"all training people have the same target, {mean:g}; draw another split.")
    return Target((cohort.y - mean) / scale, mean, scale)


def study_design(problems: Sequence[Problem]) -> Design:
    """What the runs are to each other; people per part are means over the runs."""
    n_train, n_test = (
        float(np.mean([len(set(p.cohort.people[p.split.parts()[part]])) for p in problems]))
        for part in ("train", "test")
    )
    first = problems[0].split
    if any(problem.fold is not None for problem in problems):
        kind = "folds"
    elif all(np.array_equal(problem.split.test, first.test) for problem in problems):
        kind = "one_split"
    else:
        kind = "resampled"
    return Design(kind, n_train, n_test)


def class_weights(y_train: np.ndarray, n_classes: int) -> np.ndarray:
    """Weight of each class, ``[C]``: inverse to its frequency, mean 1 over the examples."""
    counts = np.bincount(y_train, minlength=n_classes)
    return len(y_train) / (n_classes * np.maximum(counts, 1))


def validation_score(scores: np.ndarray, examples: np.ndarray, problem: Problem) -> float:
    """The problem's metric over the units of ``examples`` (which may repeat); NaN becomes worst."""
    _, pooled, y = problem.cohort.unit_mean(scores, examples)
    target = problem.target
    run = ScoredRun(target.normalise(y), pooled, np.arange(len(y)), survival=target.survival)
    value = float(weighted_metrics(run, np.ones((1, len(y))))[problem.metric][0])
    if np.isnan(value):
        return -direction(problem.metric) * np.inf
    return value
