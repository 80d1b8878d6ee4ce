"""Train, validation and test people: read, drawn, asserted, stored.

Splits are made of *groups* (a person, or a family; see :func:`cohort.disjoint_groups`), never of
runs or events, stratified by class or by quantiles of a continuous target.
"""

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import KFold, StratifiedKFold

from downstream_tasks.cohort.examples import Cohort
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


def run_name(seed: int, fold: int | None = None, draw: int | None = None) -> str:
    """``seed0``, ``seed0_fold2`` or ``seed0_draw7``."""
    numbers = {"fold": fold, "draw": draw}
    return f"seed{seed}" + "".join(f"_{k}{v}" for k, v in numbers.items() if v is not None)


def split_path(folder: Path, name: str) -> Path:
    """Where the split of the run ``name`` is stored."""
    return folder / f"split_{name}.tsv"


def draw_split(cohort: Cohort, fractions: Sequence[float], seed: int) -> Split:
    """Draw train, validation and test people in the given fractions, stratified.

    The fractions are rounded to folds (6:2:2 is five folds: three, one and one).

    Raises:
        UserError: if there are fewer groups of people than folds.
    """
    n_folds, counts = fold_counts(fractions)
    groups, strata = group_table(cohort, np.arange(len(cohort.y)), n_folds)
    where = f"a split {' : '.join(f'{f:g}' for f in fractions)}"
    fold_of_group = np.empty(len(groups), dtype=int)
    for fold, (_, members) in enumerate(stratified_folds(groups, strata, n_folds, seed, where)):
        fold_of_group[members] = fold
    fold = fold_of_group[np.searchsorted(groups, group_names(cohort))]
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
    """Write ``participant_id`` and ``split``, one row per person; who is in no part has none."""
    part = np.full(len(cohort.y), None, dtype=object)
    for name, members in split.parts().items():
        part[members] = name
    table = pd.DataFrame({"participant_id": cohort.people, "split": part}).drop_duplicates()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        text = table.to_csv(sep="\t", index=False, na_rep="n/a", quoting=csv.QUOTE_NONE)
        file.write(text.encode())


def load_split(path: Path, cohort: Cohort, needed: Sequence[str] = SPLITS) -> Split:
    """Read what :func:`save_split` wrote (or any table with those two columns).

    People of the file without a label in this cohort are skipped, with a warning, and so are those
    of no part. No part of ``needed`` may be empty.

    Raises:
        UserError: on a file that is not such a table, a person in two parts, a labelled person the
            file does not name, or an empty part.
    """
    if not path.is_file():
        raise UserError(f"split file {path} does not exist.")
    table = pd.read_csv(path, sep="\t", dtype=str, na_values=["n/a"], quoting=csv.QUOTE_NONE)
    if not {"participant_id", "split"} <= set(table.columns):
        raise UserError(f"{path} must have the columns participant_id and split.")
    if unknown := sorted(set(table["split"].dropna()) - set(SPLITS)):
        raise UserError(f"{path}: split is '{unknown[0]}', it must be {', '.join(SPLITS)}.")
    part_of = table.drop_duplicates(["participant_id", "split"]).set_index("participant_id")[
        "split"
    ]
    if part_of.index.has_duplicates:
        twice = part_of.index[part_of.index.duplicated()].unique()
        raise UserError(f"{path}: people in two parts: {some_of(twice)}. A person belongs to one.")
    if absent := sorted(set(cohort.people) - set(part_of.index)):
        raise UserError(f"{path} does not name {len(absent)} labelled people: {some_of(absent)}.")
    if skipped := set(part_of.index) - set(cohort.people):
        logger.warning("%s: %d people have no label here and are skipped", path, len(skipped))
    column = part_of.loc[cohort.people].to_numpy()
    split = Split(*(np.flatnonzero(column == part) for part in SPLITS))
    return _not_empty(split, str(path), needed)


def assert_disjoint(cohort: Cohort, split: Split) -> None:
    """Raise a :class:`UserError` listing people or families that are in more than one part."""
    columns = {"people": cohort.people, "families (or sites)": group_names(cohort)}
    for kind, names in columns.items():
        parts = {part: set(names[members]) for part, members in split.parts().items()}
        for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
            if both := sorted(parts[a] & parts[b]):
                raise UserError(
                    f"{len(both)} {kind} are in both {a} and {b}: {some_of(both)}. "
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
    names = group_names(cohort)[examples]
    if cohort.is_classification:
        per_class = [len(set(names[y == c])) for c in np.unique(y)]
        possible = min(n_folds, *per_class)
    elif cohort.survival:  # without an event in it a fold says nothing of a setting
        possible = min(n_folds, len(set(names[y > 0])))
    else:
        possible = min(n_folds, len(set(names)))
    if possible < 2:
        raise UserError(
            f"{len(set(names))} training people are too few for inner cross-validation: each class "
            "needs two, and so does an event. Choose hyper-parameters on the validation split: "
            "heads.selection=valid."
        )
    if possible < n_folds:
        logger.warning("inner cross-validation with %d folds, not %d", possible, n_folds)
    groups, strata = group_table(cohort, examples, possible)
    position = np.searchsorted(groups, names)
    return [
        (np.flatnonzero(~np.isin(position, members)), np.flatnonzero(np.isin(position, members)))
        for _, members in stratified_folds(groups, strata, possible, seed, "cross-validation")
    ]


# --- helpers -------------------------------------------------------------------------------------


def group_names(cohort: Cohort) -> np.ndarray:
    return cohort.examples["group"].to_numpy().astype(str)


def group_table(
    cohort: Cohort, examples: np.ndarray, n_folds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted group names and the stratum of each: its commonest class, or its quantile bin.

    Of times to an event it is whether anyone of the group had it.
    """
    table = pd.DataFrame({"group": group_names(cohort)[examples], "y": cohort.y[examples]})
    if cohort.is_classification:
        strata = table.groupby("group")["y"].agg(lambda y: y.mode().iloc[0])
    elif cohort.survival:
        strata = (table.groupby("group")["y"].max() > 0).astype(int)
    else:
        mean = table.groupby("group")["y"].mean()
        bins = max(1, min(_MAX_BINS, len(mean) // (2 * n_folds)))
        strata = pd.qcut(mean.rank(method="first"), bins, labels=False)
    return strata.index.to_numpy(str), strata.to_numpy(int)


def stratified_folds(
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


def fold_counts(fractions: Sequence[float]) -> tuple[int, tuple[int, ...]]:
    """Smallest number of folds in which the fractions are whole numbers of folds."""
    shares = np.asarray(fractions, dtype=float) / np.sum(fractions)
    for n_folds in range(len(shares), _MAX_FOLDS + 1):
        counts = np.round(shares * n_folds)
        exact = np.allclose(counts, shares * n_folds, atol=1e-6) or n_folds == _MAX_FOLDS
        if exact and counts.sum() == n_folds and counts.min() >= 1:
            return n_folds, tuple(int(c) for c in counts)
    raise UserError(
        f"split.fractions is {list(fractions)}: positive parts of at least 1/{_MAX_FOLDS}."
    )


def _not_empty(split: Split, where: str, needed: Sequence[str] = SPLITS) -> Split:
    for name in needed:
        if not len(split.parts()[name]):
            raise UserError(
                f"{where} leaves no labelled people for {name}. Draw a split instead: "
                "split.source=random."
            )
    return split


def some_of(names: Sequence[str]) -> str:
    names = list(names)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
