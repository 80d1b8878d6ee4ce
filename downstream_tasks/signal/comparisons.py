"""Which rows are compared with which, paired over people, with p-values for all of them together.

The best raw baseline is the one that predicts the training people best in cross-validation: it is
not picked on the people that it is compared on.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from downstream_tasks.report.results import Comparison
from downstream_tasks.report.signal import MODEL, PICKED_IN_TRAINING
from downstream_tasks.scoring.people import compare_people, holm
from downstream_tasks.signal.evaluate import Row


def best_raw(rows: Sequence[Row]) -> Row | None:
    """The baseline with the best cross-validated R2 over the training people."""
    raw = [row for row in rows if row.kind == "baseline" and "." not in row.name]
    known = [row for row in raw if not math.isnan(row.r2_training)]
    return max(known, key=lambda row: row.r2_training, default=None)


def compare_signal(
    variants: Sequence[Sequence[Row]],
    labels: Sequence[Sequence[str]],
    tested: np.ndarray,
    groups: np.ndarray,
) -> tuple[Comparison, ...]:
    """All comparisons of all variants; ``labels`` are those of their rows in the results."""
    found = []
    for rows, names in zip(variants, labels, strict=True):
        label_of = {row.name: label for row, label in zip(rows, names, strict=True)}
        score_of = {row.name: row.scores.r2()[tested] for row in rows}
        for first, second, note in _pairs(rows):
            paired = compare_people(score_of[first], score_of[second], groups)
            test = f"{paired.test}, {note}" if note else paired.test
            found.append(
                Comparison(
                    label_of[first],
                    label_of[second],
                    "r2",
                    paired.difference,
                    paired.interval,
                    paired.p,
                    test,
                    n_gain=paired.n_gain,
                    n_people=paired.n_people,
                )
            )
    adjusted = holm([comparison.p for comparison in found])
    return tuple(
        dataclasses.replace(comparison, p_adjusted=float(p))
        for comparison, p in zip(found, adjusted, strict=True)
    )


def _pairs(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Names of a row and its reference, and what is to be said of that."""
    names = [row.name for row in rows]
    pairs = [
        (name, name.replace("model", "untrained"), "")
        for name in names
        if "model" in name and name.replace("model", "untrained") in names
    ]
    best = best_raw(rows)
    for row in rows:
        if row.kind == "baseline" and "." not in row.name and not math.isnan(row.r2_training):
            pairs.append((MODEL, row.name, PICKED_IN_TRAINING if row is best else ""))
    for name in names:
        base, plus, added = name.partition("+")
        if plus and added == "model":
            pairs.append((name, base, ""))
    return pairs
