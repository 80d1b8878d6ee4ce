"""What a study fits again: a representation with its head, on problems that the study poses."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from downstream_tasks.cohort.problem import Problem, validation_score
from downstream_tasks.heads.result import HeadResult


@dataclass(frozen=True)
class Method:
    """A row of the table that can be fitted to other labels or fewer people.

    ``fit`` holds the features, which are computed once, before any study: labels of a problem reach
    the head only.
    """

    name: str
    head: str
    fit: Callable[[Problem], HeadResult]

    @property
    def label(self) -> str:
        """As :attr:`MethodResult.label`."""
        return f"{self.name} ({self.head})"


def score_on_test(problem: Problem, result: HeadResult) -> float:
    """The problem's metric on its test people; the worst value where it is undefined."""
    test = problem.split.test
    return validation_score(result.scores[test], test, problem)


def mean_test_score(problems: Sequence[Problem], results: Sequence[HeadResult]) -> float:
    """Mean of :func:`score_on_test` over runs."""
    return float(np.mean([score_on_test(p, r) for p, r in zip(problems, results, strict=True)]))


@contextlib.contextmanager
def without_repeated_messages() -> Iterator[None]:
    """Keep what fits say of themselves out of the log, where thousands of them would say it."""
    logger = logging.getLogger("downstream_tasks")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
