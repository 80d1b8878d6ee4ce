"""The endpoints of an experiment, computed: paired differences over people, corrected together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from scripts.ablation.experiment import ARM, BEST_RAW, UNTRAINED, Endpoint, Plan
from scripts.ablation.statistics import Paired, holm, paired
from scripts.ablation.table import LESS_IS_BETTER
from src.utils.errors import UserError, nearest


@dataclass(frozen=True)
class Comparison:
    """One endpoint on one data set for one arm: ``method`` against ``reference``.

    Attributes:
        score, reference_score: means over people.
        found: the paired differences, positive where the method is better.
        holm: p of the sign-flip test, corrected for all comparisons of the experiment.
        n_runs: runs of the arm that are in it, of ``n_runs_planned``.
    """

    endpoint: Endpoint
    data: str
    arm: str
    method: str
    reference: str
    score: float
    reference_score: float
    found: Paired
    holm: float
    n_runs: int
    n_runs_planned: int

    @property
    def label(self) -> str:
        """Arm and reference, as a figure names them."""
        return f"{self.arm}: {self.method} - {self.reference}"


def compare_endpoints(
    plan: Plan, table: pd.DataFrame, group_of: Mapping[tuple[str, str], str]
) -> list[Comparison]:
    """Every declared endpoint, for each data set and arm that has results.

    Scores of a person are averaged over seeds. Families (``group_of`` data set and person) are
    clusters, as their members are not independent.

    Raises:
        UserError: if an endpoint names a row, a variant or a metric that the results do not have.
    """
    found = []
    for endpoint in plan.endpoints:
        for data in endpoint.data or [each.label for each in plan.data]:
            rows = table[(table["task"] == endpoint.task) & (table["data"] == data)]
            rows = _one_of(rows, "metric", endpoint.metric, endpoint)
            rows = _one_of(rows, "variant", endpoint.variant, endpoint)
            for arm in endpoint.arms or [each.name for each in plan.arms]:
                if comparison := _compare(plan, rows, endpoint, data, arm, group_of):
                    found.append(comparison)
    corrected = holm([comparison.found.flip_p for comparison in found])
    return [replace(c, holm=float(p)) for c, p in zip(found, corrected, strict=True)]


def _one_of(rows: pd.DataFrame, column: str, value: str, endpoint: Endpoint) -> pd.DataFrame:
    there = sorted(set(rows[column]))
    if not there or value in there:
        return rows[rows[column] == value]
    if column == "variant" and not value and len(there) == 1:
        return rows
    raise UserError(
        f"endpoint '{endpoint.title}': {column} is '{value}', but {endpoint.task} has "
        f"{', '.join(there)}.{nearest(value, there)}"
    )


def _compare(
    plan: Plan,
    rows: pd.DataFrame,
    endpoint: Endpoint,
    data: str,
    arm: str,
    group_of: Mapping[tuple[str, str], str],
) -> Comparison | None:
    """``None`` where the arm has no results yet, or is the one that others are compared with."""
    own = rows[rows["arm"] == arm]
    if own.empty:
        return None
    method = endpoint.method
    if method.startswith(f"{BEST_RAW}+"):
        method = method.replace(BEST_RAW, _best_raw(own, endpoint))
    method = _method(own, endpoint, method)
    if endpoint.against.startswith(ARM):
        other = endpoint.against.removeprefix(ARM)
        theirs = rows[rows["arm"] == other]
        if other == arm or theirs.empty:
            return None
        names, reference = [_method(theirs, endpoint, endpoint.method)], other
    else:
        theirs, names = own, _reference(own, endpoint, method)
        reference = names[0] if len(names) == 1 else UNTRAINED
    both = pd.concat(
        [_by_person(own, [method]), _by_person(theirs, names)], axis=1, keys=["one", "other"]
    ).dropna()
    groups = np.array([group_of[data, person] for person in both.index], dtype=str)
    pair = (both["one"].to_numpy(), both["other"].to_numpy())
    better, worse = pair[::-1] if endpoint.metric in LESS_IS_BETTER else pair
    return Comparison(
        endpoint,
        data,
        arm,
        method,
        reference,
        float(both["one"].mean()),
        float(both["other"].mean()),
        paired(better, worse, groups),
        np.nan,
        own[["seed", "fold"]].drop_duplicates().shape[0],
        len(plan.experiment.seeds) * plan.experiment.folds,
    )


def _by_person(rows: pd.DataFrame, methods: Sequence[str]) -> pd.Series:
    """Mean over seeds (and ``methods``, such as several untrained copies) of each person."""
    chosen = rows[rows["method"].isin(methods)]
    return chosen.groupby("participant_id")["value"].mean()


def _method(rows: pd.DataFrame, endpoint: Endpoint, name: str) -> str:
    if not name:
        return _only(rows, endpoint, "model")
    there = sorted(set(rows["method"]))
    if name not in there:
        raise UserError(
            f"endpoint '{endpoint.title}': {endpoint.task} has no row '{name}', but "
            f"{', '.join(there)}.{nearest(name, there)}"
        )
    return name


def _only(rows: pd.DataFrame, endpoint: Endpoint, role: str) -> str:
    names = sorted(set(rows.loc[rows["role"] == role, "method"]))
    if len(names) != 1:
        raise UserError(
            f"endpoint '{endpoint.title}': name the row by method; {endpoint.task} has "
            f"{len(names)} rows of the {role}: {', '.join(names or sorted(set(rows['method'])))}."
        )
    return names[0]


def _reference(rows: pd.DataFrame, endpoint: Endpoint, method: str) -> list[str]:
    """Rows that the method is compared with: copies of the untrained network are averaged.

    Where rows are named alike (``var+model``, ``var+untrained``), it is the one named so.
    """
    if endpoint.against == UNTRAINED:
        alike = method.replace("model", UNTRAINED)
        if alike != method and alike in set(rows["method"]):
            return [alike]
        names = sorted(set(rows.loc[rows["role"] == "untrained", "method"]))
        if not names:
            raise UserError(
                f"endpoint '{endpoint.title}': {endpoint.task} has no untrained network; its rows: "
                f"{', '.join(sorted(set(rows['method'])))}."
            )
        return names
    if endpoint.against == BEST_RAW:
        return [_best_raw(rows, endpoint)]
    return [_method(rows, endpoint, endpoint.against)]


def _best_raw(rows: pd.DataFrame, endpoint: Endpoint) -> str:
    raw = rows[rows["role"] == "raw"]
    if raw.empty:
        raise UserError(f"endpoint '{endpoint.title}': {endpoint.task} has no raw baseline.")
    means = raw.groupby("method")["value"].mean()
    return str(means.idxmin() if endpoint.metric in LESS_IS_BETTER else means.idxmax())
