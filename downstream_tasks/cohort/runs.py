"""The splits of all runs of an evaluation: made as the task says, or read from an earlier run."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.folds import cross_validation, leave_one_site_out, site_notes
from downstream_tasks.cohort.splits import (
    Split,
    assert_disjoint,
    draw_split,
    folder_split,
    load_split,
    run_name,
    save_split,
    some_of,
    split_path,
)
from downstream_tasks.config import SplitConfig
from src.utils.errors import UserError

logger = logging.getLogger(__name__)


class RunSplit(NamedTuple):
    """The split of one run; ``fold`` numbers the test folds of a seed, if there are several."""

    seed: int
    fold: int | None
    split: Split

    @property
    def name(self) -> str:
        """As :attr:`Problem.name`."""
        return run_name(self.seed, self.fold)


def make_splits(
    cohort: Cohort,
    config: SplitConfig,
    seeds: Sequence[int],
    *,
    validation: bool = True,
) -> list[RunSplit]:
    """The splits of all runs, checked.

    By cross-validation (``source: cv``) every seed draws new folds, by site the folds are the
    sites. With ``config.resample`` every seed draws new people; otherwise all seeds share one
    split, from ``config.file``, from the data folder (``source: folder``) or drawn with
    ``config.seed``. Without ``validation`` the folds leave all but their test people to training.

    Raises:
        UserError: on people that cannot be divided so.
    """
    runs = []
    train_valid = config.fractions[:2] if validation else None
    for seed in seeds:
        if config.source == "cv":
            splits = cross_validation(cohort, config.folds, config.seed + seed, train_valid)
        elif config.source == "site":
            sites = leave_one_site_out(cohort, config.site, config.seed + seed, train_valid)
            splits = list(sites.values())
        else:
            runs.append(RunSplit(seed, None, _hold_out(cohort, config, seed)))
            continue
        runs += [RunSplit(seed, fold, split) for fold, split in enumerate(splits)]
    _check(cohort, runs)
    for run in runs:
        _warn_about_absent_classes(cohort, run)
    return runs


def save_splits(folder: Path, cohort: Cohort, runs: Sequence[RunSplit]) -> None:
    """Write the splits to ``folder/split_*.tsv``, where :func:`stored_splits` finds them."""
    for run in runs:
        save_split(split_path(folder, run.name), cohort, run.split)


def stored_splits(
    cohort: Cohort, config: SplitConfig, seeds: Sequence[int], folder: Path
) -> list[RunSplit]:
    """The splits that an earlier run wrote into ``folder``, checked.

    Raises:
        UserError: as :func:`load_split` and :func:`assert_disjoint`; on folds that do not test
            everyone once.
    """
    runs = []
    for seed in seeds:
        if not config.in_folds:
            path = split_path(folder, run_name(seed))
            if not path.is_file():
                stored = len(list(folder.glob(split_path(folder, "seed*").name)))
                raise UserError(
                    f"--eval: {path} is not there: the run before had {stored} seeds. Score as "
                    f"many (--num_seed {stored}), or run without --eval first."
                    if stored
                    else f"--eval: {folder} holds no splits; run without --eval first."
                )
            split = load_split(path, cohort)
            runs.append(RunSplit(seed, None, split))
            continue
        folds = len(list(folder.glob(split_path(folder, f"{run_name(seed)}_fold*").name)))
        for fold in range(max(1, folds)):
            path = split_path(folder, run_name(seed, fold))
            runs.append(RunSplit(seed, fold, load_split(path, cohort, ("train", "test"))))
    _check(cohort, runs)
    return runs


def check_folds(cohort: Cohort, runs: Sequence[RunSplit]) -> None:
    """Raise a :class:`UserError` unless the folds of every seed test every person exactly once."""
    for seed in sorted({run.seed for run in runs if run.fold is not None}):
        tested = np.zeros(len(cohort.y), dtype=int)
        for run in runs:
            if run.seed == seed:
                tested[run.split.test] += 1
        if (tested != 1).any():
            who = sorted(set(cohort.people[tested != 1]))
            raise UserError(
                f"the folds of seed {seed} do not test everyone exactly once: {len(who)} people "
                f"are in none or in several, {some_of(who)}. A fold is missing, or the data are "
                "others than when the folds were made: run again without --eval."
            )


def split_notes(cohort: Cohort, config: SplitConfig, runs: Sequence[RunSplit]) -> tuple[str, ...]:
    """What is to be said of the splits beside the results."""
    notes = []
    if config.source == "site":
        notes += site_notes(cohort, config.site, [run.split for run in runs])
    n_classes = len(cohort.classes)
    lacking = [run.name for run in runs if len(np.unique(cohort.y[run.split.test])) < n_classes]
    if lacking:
        more = "; fewer folds (split.folds) help" if config.source == "cv" else ""
        notes.append(
            f"the test people of {', '.join(lacking)} do not hold every class: AUROC and average "
            "precision are not defined there, nor is their mean, and balanced accuracy is over the "
            f"classes there: one class for everyone has more than {1 / n_classes:.2g}{more}"
        )
    return tuple(notes)


def _check(cohort: Cohort, runs: Sequence[RunSplit]) -> None:
    for run in runs:
        assert_disjoint(cohort, run.split)
    check_folds(cohort, runs)


def _hold_out(cohort: Cohort, config: SplitConfig, seed: int) -> Split:
    if config.resample:
        return draw_split(cohort, config.fractions, config.seed + seed)
    if config.file:
        return load_split(Path(config.file), cohort)
    if config.source == "folder":
        return folder_split(cohort)
    return draw_split(cohort, config.fractions, config.seed)


def _warn_about_absent_classes(cohort: Cohort, run: RunSplit) -> None:
    for name, members in run.split.parts().items():
        absent = len(np.unique(cohort.y[members])) < len(cohort.classes)
        if cohort.is_classification and len(members) and absent:
            logger.warning("%s: the %s people do not hold every class", run.name, name)
