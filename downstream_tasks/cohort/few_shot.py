"""Few labelled events: small training sets drawn many times, tested on the same held-out people.

A draw takes some training people, and of each of them as many events of every class. Everyone else
of the training part has no label in that draw, and the validation people have none at all. The
draws are the runs of an evaluation: what a table shows is their mean, and as the test people are
those of every draw, its interval is over these people, within whom draws are averaged.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.runs import RunSplit
from downstream_tasks.cohort.splits import Split
from downstream_tasks.config import FewShotConfig
from src.utils.errors import UserError


def few_shot_runs(
    cohort: Cohort, runs: Sequence[RunSplit], config: FewShotConfig
) -> list[tuple[RunSplit, int | None]]:
    """Each of ``runs`` with the number of its draw: ``config.draws`` of each, or itself and None.

    Raises:
        UserError: as :func:`draw_events`.
    """
    if not config.events:
        return [(run, None) for run in runs]
    return [
        (run._replace(split=draw_events(cohort, run.split, config, run.seed, draw)), draw)
        for run in runs
        for draw in range(config.draws)
    ]


def draw_events(cohort: Cohort, split: Split, config: FewShotConfig, seed: int, draw: int) -> Split:
    """The split with ``config.events`` events of every class of ``config.people`` people to train.

    A draw with fewer people or events is part of the draw of the same number with more of them.

    Raises:
        UserError: if fewer training people than that have so many events of every class.
    """
    people, y = cohort.people[split.train], cohort.y[split.train]
    rng = np.random.default_rng([seed, draw])
    order, fewest, events = np.unique(people), [], {}
    for person in order:  # everyone draws, so that no one's draw depends on who is left out
        of_class = [
            rng.permutation(split.train[(people == person) & (y == c)])
            for c in range(len(cohort.classes))
        ]
        fewest.append(min(map(len, of_class)))
        events[person] = np.concatenate([members[: config.events] for members in of_class])
    shuffled = rng.permutation(len(order))
    able = [order[i] for i in shuffled if fewest[i] >= config.events]
    if len(able) < config.people:
        raise UserError(
            f"evaluation.few_shot: {len(able)} of {len(order)} training people have "
            f"{config.events} events of every class, fewer than {config.people}; allowed: as many "
            "people as have so many events. Lower evaluation.few_shot.people or .events."
        )
    train = np.sort(np.concatenate([events[person] for person in able[: config.people]]))
    return replace(split, train=train, valid=split.valid[:0])


def few_shot_words(config: FewShotConfig, n_training_people: int) -> str:
    """What was done, for the results."""
    return (
        f"{config.draws} draws of {config.events} events of every class of {config.people} of "
        f"{n_training_people} training people; rows are means over the draws, intervals over "
        "test people"
    )
