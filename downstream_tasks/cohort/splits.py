"""Train, validation and test people: read, drawn, asserted, stored.

Splits are made of *groups* (a person, or a family; see :func:`cohort.disjoint_groups`), never of
runs or events, stratified by class or by quantiles of a continuous target.
"""

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.model_selection import KFold, StratifiedKFold

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.config import SplitConfig
from src.datasets.folder.format import SPLITS
from src.utils.errors import UserError
from src.utils.files import replacing

logger = logging.getLogger(__name__)

_MAX_FOLDS = 20  # fractions are rounded to twentieths at the finest
_MAX_BINS = 10


@dataclass(frozen=True)
class Split:
    """Example numbers of the three parts."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray

    def parts(self) -> dict[str, np.ndarray]:
        """Part name -> example numbers."""
        return {name: getattr(self, name) for name in SPLITS}


class RunSplit(NamedTuple):
    """The split of one run; ``fold`` numbers the test folds of a seed, if there are several."""

    seed: int
    fold: int | None
    split: Split

    @property
    def name(self) -> str:
        """As :attr:`Problem.name`."""
        return run_name(self.seed, self.fold)


def run_name(seed: int, fold: int | None = None) -> str:
    """``seed0``, or ``seed0_fold2``."""
    return f"seed{seed}" if fold is None else f"seed{seed}_fold{fold}"


def make_splits(
    cohort: Cohort, config: SplitConfig, seeds: Sequence[int], folder: Path | None = None
) -> list[RunSplit]:
    """The splits of all runs, checked; written to ``folder/split_*.tsv`` if that is given.

    With ``config.resample`` every seed draws new people; otherwise all seeds share one split, from
    ``config.file``, from the data folder (``source: folder``) or drawn with ``config.seed``.
    """
    if config.resample:
        splits = [draw_split(cohort, config.fractions, config.seed + seed) for seed in seeds]
    elif config.file:
        splits = [load_split(Path(config.file), cohort)] * len(seeds)
    elif config.source == "folder":
        splits = [folder_split(cohort)] * len(seeds)
    else:
        splits = [draw_split(cohort, config.fractions, config.seed)] * len(seeds)
    runs = [RunSplit(seed, None, split) for seed, split in zip(seeds, splits, strict=True)]
    for run in runs:
        assert_disjoint(cohort, run.split)
        _warn_about_absent_classes(cohort, run.split)
        if folder is not None:
            save_split(split_path(folder, run.name), cohort, run.split)
    return runs


def stored_splits(cohort: Cohort, seeds: Sequence[int], folder: Path) -> list[RunSplit]:
    """The splits that an earlier run wrote into ``folder``, checked.

    Raises:
        UserError: as :func:`load_split` and :func:`assert_disjoint`.
    """
    runs = [
        RunSplit(seed, None, load_split(split_path(folder, run_name(seed)), cohort))
        for seed in seeds
    ]
    for run in runs:
        assert_disjoint(cohort, run.split)
    return runs


def split_path(folder: Path, name: str) -> Path:
    """Where the split of the run ``name`` is stored."""
    return folder / f"split_{name}.tsv"


def draw_split(cohort: Cohort, fractions: Sequence[float], seed: int) -> Split:
    """Draw train, validation and test people in the given fractions, stratified.

    The fractions are rounded to folds (6:2:2 is five folds: three, one and one).

    Raises:
        UserError: if there are fewer groups of people than folds.
    """
    n_folds, counts = _fold_counts(fractions)
    groups, strata = _group_table(cohort, np.arange(len(cohort.y)), n_folds)
    where = f"a split {' : '.join(f'{f:g}' for f in fractions)}"
    fold_of_group = np.empty(len(groups), dtype=int)
    for fold, (_, members) in enumerate(_stratified_folds(groups, strata, n_folds, seed, where)):
        fold_of_group[members] = fold
    fold = fold_of_group[np.searchsorted(groups, _group_names(cohort))]
    # The test part takes the first folds: which people those are is random.
    test, valid = counts[2], counts[2] + counts[1]
    return Split(
        train=np.flatnonzero(fold >= valid),
        valid=np.flatnonzero((fold >= test) & (fold < valid)),
        test=np.flatnonzero(fold < test),
    )


def folder_split(cohort: Cohort) -> Split:
    """The split column of participants.tsv.

    Raises:
        UserError: if one of the three parts has no one.
    """
    column = cohort.examples["split"].to_numpy()
    return _not_empty(
        Split(*(np.flatnonzero(column == part) for part in SPLITS)),
        "the data folder's split column",
    )


def save_split(path: Path, cohort: Cohort, split: Split) -> None:
    """Write ``participant_id`` and ``split``, one row per person."""
    part = np.empty(len(cohort.y), dtype=object)
    for name, members in split.parts().items():
        part[members] = name
    table = pd.DataFrame({"participant_id": cohort.people, "split": part}).drop_duplicates()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(table.to_csv(sep="\t", index=False, quoting=csv.QUOTE_NONE).encode())


def load_split(path: Path, cohort: Cohort) -> Split:
    """Read what :func:`save_split` wrote (or any table with those two columns).

    People of the file without a label in this cohort are skipped, with a warning.

    Raises:
        UserError: on a file that is not such a table, a person in two parts, a labelled person the
            file does not name, or an empty part.
    """
    if not path.is_file():
        raise UserError(f"split file {path} does not exist.")
    table = pd.read_csv(path, sep="\t", dtype=str, quoting=csv.QUOTE_NONE)
    if not {"participant_id", "split"} <= set(table.columns):
        raise UserError(f"{path} must have the columns participant_id and split.")
    if unknown := sorted(set(table["split"].dropna()) - set(SPLITS)):
        raise UserError(f"{path}: split is '{unknown[0]}', it must be {', '.join(SPLITS)}.")
    part_of = table.drop_duplicates(["participant_id", "split"]).set_index("participant_id")[
        "split"
    ]
    if part_of.index.has_duplicates:
        twice = part_of.index[part_of.index.duplicated()].unique()
        raise UserError(f"{path}: people in two parts: {_some(twice)}. A person belongs to one.")
    if absent := sorted(set(cohort.people) - set(part_of.index)):
        raise UserError(f"{path} does not name {len(absent)} labelled people: {_some(absent)}.")
    if skipped := set(part_of.index) - set(cohort.people):
        logger.warning("%s: %d people have no label here and are skipped", path, len(skipped))
    column = part_of.loc[cohort.people].to_numpy()
    return _not_empty(Split(*(np.flatnonzero(column == part) for part in SPLITS)), str(path))


def assert_disjoint(cohort: Cohort, split: Split) -> None:
    """Raise a :class:`UserError` listing people or families that are in more than one part."""
    columns = {"people": cohort.people, "families (or sites)": _group_names(cohort)}
    for kind, names in columns.items():
        parts = {part: set(names[members]) for part, members in split.parts().items()}
        for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
            if both := sorted(parts[a] & parts[b]):
                raise UserError(
                    f"{len(both)} {kind} are in both {a} and {b}: {_some(both)}. "
                    "Draw a new split (split.source: random), or correct the split given."
                )


def inner_folds(
    cohort: Cohort, examples: np.ndarray, n_folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Group-disjoint stratified folds of ``examples``: (fit, score) positions *within* it.

    Fewer folds than asked are made when a class has fewer groups than that.

    Raises:
        UserError: if not even two folds are possible.
    """
    y = cohort.y[examples]
    names = _group_names(cohort)[examples]
    if cohort.is_classification:
        per_class = [len(set(names[y == c])) for c in np.unique(y)]
        possible = min(n_folds, *per_class)
    else:
        possible = min(n_folds, len(set(names)))
    if possible < 2:
        raise UserError(
            f"{len(set(names))} training people are too few for inner cross-validation: each class "
            "needs two. Choose hyper-parameters on the validation split: heads.selection=valid."
        )
    if possible < n_folds:
        logger.warning("inner cross-validation with %d folds, not %d", possible, n_folds)
    groups, strata = _group_table(cohort, examples, possible)
    position = np.searchsorted(groups, names)
    return [
        (np.flatnonzero(~np.isin(position, members)), np.flatnonzero(np.isin(position, members)))
        for _, members in _stratified_folds(groups, strata, possible, seed, "cross-validation")
    ]


# --- helpers -------------------------------------------------------------------------------------


def _group_names(cohort: Cohort) -> np.ndarray:
    return cohort.examples["group"].to_numpy().astype(str)


def _group_table(
    cohort: Cohort, examples: np.ndarray, n_folds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted group names and the stratum of each: its commonest class, or its quantile bin."""
    table = pd.DataFrame({"group": _group_names(cohort)[examples], "y": cohort.y[examples]})
    if cohort.is_classification:
        strata = table.groupby("group")["y"].agg(lambda y: y.mode().iloc[0])
    else:
        mean = table.groupby("group")["y"].mean()
        bins = max(1, min(_MAX_BINS, len(mean) // (2 * n_folds)))
        strata = pd.qcut(mean.rank(method="first"), bins, labels=False)
    return strata.index.to_numpy(str), strata.to_numpy(int)


def _stratified_folds(
    groups: np.ndarray, strata: np.ndarray, n_folds: int, seed: int, where: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    if len(groups) < n_folds:
        raise UserError(
            f"{where} needs {n_folds} folds, there are only {len(groups)} people (or families)."
        )
    if np.bincount(strata).max() < n_folds:  # no class is large enough to be in every fold
        folds = KFold(n_folds, shuffle=True, random_state=seed)
    else:
        folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    return list(folds.split(groups, strata))


def _fold_counts(fractions: Sequence[float]) -> tuple[int, tuple[int, ...]]:
    """Smallest number of folds in which the three fractions are whole numbers of folds."""
    shares = np.asarray(fractions, dtype=float) / np.sum(fractions)
    for n_folds in range(3, _MAX_FOLDS + 1):
        counts = np.round(shares * n_folds)
        exact = np.allclose(counts, shares * n_folds, atol=1e-6) or n_folds == _MAX_FOLDS
        if exact and counts.sum() == n_folds and counts.min() >= 1:
            return n_folds, tuple(int(c) for c in counts)
    raise UserError(
        f"split.fractions is {list(fractions)}: three positive parts of at least 1/{_MAX_FOLDS}."
    )


def _not_empty(split: Split, where: str) -> Split:
    for name, members in split.parts().items():
        if not len(members):
            raise UserError(
                f"{where} leaves no labelled people for {name}. Draw a split instead: "
                "split.source=random."
            )
    return split


def _warn_about_absent_classes(cohort: Cohort, split: Split) -> None:
    for name, members in split.parts().items():
        if cohort.is_classification and len(np.unique(cohort.y[members])) < len(cohort.classes):
            logger.warning("the %s people of a split do not hold every class", name)


def _some(names: Sequence[str]) -> str:
    names = list(names)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
