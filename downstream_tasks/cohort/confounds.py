"""Confounds: columns of participants.tsv as numbers, and their linear effects."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.problem import Problem, make_target
from downstream_tasks.cohort.splits import Split, some_of
from src.utils.errors import UserError

KEY = "data.confounds"


def confound_table(cohort: Cohort, names: Sequence[str], key: str = KEY) -> np.ndarray:
    """Confounds of each example as numbers, ``[n_examples, K]``.

    A column of numbers is itself; a column of text, or ``C(column)``, is one column of 0 and 1 for
    each of its values but the first.

    Raises:
        UserError: on a column that is missing, or people without a value.
    """
    parts = [np.empty((len(cohort.y), 0))]
    for name in names:
        values, categorical = _values(cohort, name, key)
        if categorical:
            parts.append(pd.get_dummies(values, drop_first=True).to_numpy(float))
        else:
            parts.append(values.to_numpy(float)[:, None])
    return np.hstack(parts)


def unseen_levels(cohort: Cohort, names: Sequence[str], split: Split, run: str) -> None:
    """Raise a :class:`UserError` if a value of a categorical confound has no training people."""
    for name in names:
        values, categorical = _values(cohort, name, KEY)
        if categorical and (new := sorted(set(values) - set(values.iloc[split.train]))):
            raise UserError(
                f"{KEY}: no training person of {run} has {name} {some_of(new)}, whose effect is "
                "to be removed. Take the column out of data.confounds, or split otherwise "
                "(a site that is left out has an effect that no one can estimate)."
            )


def remove_linear(values: np.ndarray, confounds: np.ndarray, train: np.ndarray) -> np.ndarray:
    """``values`` ``[n, ...]`` less the linear effects of ``confounds`` ``[n, K]``.

    The effects are estimated on ``train`` by least squares with an intercept; the mean over the
    training examples stays.

    Raises:
        UserError: if there are not more training examples than confounds.
    """
    if len(train) <= confounds.shape[1] + 1:
        raise UserError(
            f"{len(train)} training examples are too few to remove {confounds.shape[1]} confounds "
            f"({KEY}); a categorical one counts its values."
        )
    mean, scale = confounds[train].mean(axis=0), confounds[train].std(axis=0)
    z = (confounds - mean) / np.where(scale > 0, scale, 1.0)  # units must not decide the rank
    y = values.astype(np.float64)
    effects = np.linalg.lstsq(z[train], y[train] - y[train].mean(axis=0), rcond=None)[0]
    return y - z @ effects


def without_confounds(problem: Problem, names: Sequence[str], normalise: bool) -> Problem:
    """The problem of predicting what the confounds do not explain of its target.

    The confounds of a unit are the means over its examples; every unit counts once.
    """
    cohort, split = problem.cohort, problem.split
    unseen_levels(cohort, names, split, problem.name)
    units = cohort.examples["unit"].to_numpy()
    table = pd.DataFrame(confound_table(cohort, names)).groupby(units).transform("mean").to_numpy()
    first_of_unit = np.unique(units[split.train], return_index=True)[1]
    residual = remove_linear(cohort.y, table, split.train[first_of_unit])
    changed = replace(cohort, y=residual)
    return replace(problem, cohort=changed, target=make_target(changed, split, normalise))


def _values(cohort: Cohort, name: str, key: str) -> tuple[pd.Series, bool]:
    """Values of a confound for each example, and whether they are categories."""
    column = name[2:-1].strip() if name.startswith("C(") and name.endswith(")") else name
    values = pd.Series(cohort.column(column, key))
    categorical = column != name or not pd.api.types.is_numeric_dtype(values.infer_objects())
    return (values.astype(str) if categorical else values.astype(float)), categorical
