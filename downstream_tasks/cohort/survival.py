"""Whether there are events enough to learn a risk from and to test one by."""

from collections.abc import Sequence

import numpy as np

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.runs import RunSplit
from downstream_tasks.cohort.splits import Split
from downstream_tasks.scoring.survival import weighted_concordance
from src.utils.errors import UserError

_FEWEST = 2  # for inner cross-validation
_FEW_TRAINING, _FEW_TEST = 20, 10  # below it a note says how few they are


def check_training_events(cohort: Cohort, split: Split) -> None:
    """Raise a :class:`UserError` if too few training people had the event."""
    if (n := _people_with_event(cohort, split.train)) < _FEWEST:
        raise UserError(
            f"{n} of the training people had the event; two or more are needed to learn who is at "
            "risk. Draw another split (another split.seed), or more training people "
            "(split.fractions)."
        )


def event_notes(cohort: Cohort, runs: Sequence[RunSplit]) -> tuple[str, ...]:
    """What is to be said of few events.

    Raises:
        UserError: if the test people of a run have no two of whom one had the event first.
    """
    if not cohort.survival:
        return ()
    for run in runs:
        test = run.split.test
        _, _, y = cohort.unit_mean(np.zeros(len(test)), test)
        if not (y > 0).any() or np.isnan(weighted_concordance(y, y, np.ones((1, len(y))))[0]):
            raise UserError(
                f"{run.name}: of no two test people it is known who had the event first; "
                "concordance is not defined. Draw another split (another split.seed), fewer folds "
                "(split.folds) or more test people (split.fractions)."
            )
    notes = []
    for part, few in (("train", _FEW_TRAINING), ("test", _FEW_TEST)):
        n = min(_people_with_event(cohort, run.split.parts()[part]) for run in runs)
        if n < few:
            who = {"train": "training", "test": "test"}[part]
            notes.append(f"{n} {who} people had the event: what they say of a risk is rough")
    return tuple(notes)


def _people_with_event(cohort: Cohort, examples: np.ndarray) -> int:
    return len(set(cohort.people[examples][cohort.y[examples] > 0]))
