"""What the runs of an evaluation are to each other: decides which test and interval hold."""

from dataclasses import dataclass
from typing import Literal

DesignKind = Literal["one_split", "resampled", "folds"]


@dataclass(frozen=True)
class Design:
    """How the runs of an evaluation differ.

    Attributes:
        kind: ``one_split``: the same people in every part, runs differ by their random start;
            ``resampled``: new people in every part of every run, so that test parts overlap;
            ``folds``: test parts are disjoint within a repeat and cover everyone.
        n_train, n_test: people in these parts of a run, mean over the runs.
    """

    kind: DesignKind
    n_train: float
    n_test: float
