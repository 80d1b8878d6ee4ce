"""Cross-validation: test parts that cover everyone once, by folds drawn or by site.

Settings are chosen inside the training folds (nested cross-validation): heads without epochs by an
inner cross-validation over all training people, what is trained by gradient on a validation part
that is taken out of them.
"""

import logging
from collections.abc import Sequence

import numpy as np

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.splits import (
    Split,
    fold_counts,
    group_names,
    group_table,
    some_of,
    stratified_folds,
)
from src.utils.errors import UserError

_FEW_PEOPLE = 10  # at a site: fewer are pointed out

logger = logging.getLogger(__name__)


def cross_validation(
    cohort: Cohort, n_folds: int, seed: int, train_valid: Sequence[float] | None
) -> list[Split]:
    """Splits whose test parts are ``n_folds`` stratified folds of groups of people.

    ``train_valid`` are the fractions in which the others become training and validation people;
    ``None`` leaves them all to training.

    Raises:
        UserError: if there are fewer groups of people than folds.
    """
    groups, strata = group_table(cohort, np.arange(len(cohort.y)), n_folds)
    where = f"cross-validation (split.folds: {n_folds})"
    names = group_names(cohort)
    splits = []
    for fold, (_, members) in enumerate(stratified_folds(groups, strata, n_folds, seed, where)):
        is_test = np.isin(names, groups[members])
        splits.append(_nested(cohort, np.flatnonzero(~is_test), is_test, seed + fold, train_valid))
    return splits


def leave_one_site_out(
    cohort: Cohort, column: str, seed: int, train_valid: Sequence[float] | None
) -> dict[str, Split]:
    """Splits whose test parts are the sites, by site.

    Families with members at the site that is tested are in no part of its split: they are neither
    of another site, nor may they train.

    Raises:
        UserError: on fewer than two sites, an example without one, or a unit with several.
    """
    sites = cohort.column(column, "split.site").astype(str)
    labels = np.unique(sites)
    if len(labels) < 2:
        raise UserError(
            f"split.site: everyone has {column} '{labels[0]}'; leaving one site out needs two or "
            "more. Use cross-validation: split.source=cv."
        )
    units = cohort.examples["unit"].to_numpy()
    several = [u for u in np.unique(units) if len(np.unique(sites[units == u])) > 1]
    if several:
        people = cohort.units["participant_id"].to_numpy()[several]
        raise UserError(
            f"{len(several)} scored units have runs at several sites ({column}): "
            f"{some_of(people)}. Score each run (data.unit=run), or take runs of one site "
            "(data.runs)."
        )
    names = group_names(cohort)
    splits = {}
    for site in labels:
        is_test = sites == site
        related = np.isin(names, names[is_test]) & ~is_test
        if related.any():
            logger.warning(
                "site %s is tested without training on %d people of its families at other sites",
                site,
                len(set(cohort.people[related])),
            )
        rest = np.flatnonzero(~is_test & ~related)
        if not len(rest):
            raise UserError(
                f"no one is left to train when site {site} is tested: families (data.disjoint) "
                "join all sites."
            )
        splits[site] = _nested(cohort, rest, is_test, seed, train_valid)
    return splits


def site_notes(cohort: Cohort, column: str, splits: Sequence[Split]) -> tuple[str, ...]:
    """Which fold is which site, and what a site is too small or too uniform for."""
    sites = [str(cohort.column(column, "split.site")[split.test[0]]) for split in splits]
    sizes = [len(set(cohort.people[split.test])) for split in splits]
    named = enumerate(zip(sites, sizes, strict=True))
    listed = (f"fold {i} is {site} ({size} people)" for i, (site, size) in named)
    notes = [f"leave-one-site-out over {column}: {', '.join(listed)}"]
    for site, size, split in zip(sites, sizes, splits, strict=True):
        classes = np.unique(cohort.y[split.test])
        if cohort.is_classification and len(classes) == 1:
            notes.append(
                f"everyone at site {site} is {cohort.classes[classes[0]]}: the score there is how "
                "often that is said"
            )
        elif size < _FEW_PEOPLE:
            notes.append(f"site {site} has {size} people: the score there is mostly noise")
    return tuple(notes)


def _nested(
    cohort: Cohort,
    rest: np.ndarray,
    is_test: np.ndarray,
    seed: int,
    train_valid: Sequence[float] | None,
) -> Split:
    """The split of the test examples ``is_test``, the others being ``rest``."""
    test = np.flatnonzero(is_test)
    if train_valid is None:
        return Split(train=rest, valid=np.array([], dtype=np.int64), test=test)
    n_folds, (_, n_valid) = fold_counts(train_valid)
    groups, strata = group_table(cohort, rest, n_folds)
    folds = stratified_folds(groups, strata, n_folds, seed, "the validation part of a fold")
    chosen = np.concatenate([members for _, members in folds[:n_valid]])
    is_valid = np.isin(group_names(cohort)[rest], groups[chosen])
    return Split(train=rest[~is_valid], valid=rest[is_valid], test=test)
