"""Which rows of a table are compared with which, paired over the same test people."""

from collections.abc import Callable, Mapping, Sequence

from downstream_tasks.features.registry import joint_name
from downstream_tasks.report.results import FC_NAME, Comparison, MethodResult
from downstream_tasks.scoring.design import Design
from downstream_tasks.scoring.metrics import direction
from downstream_tasks.scoring.paired import PairedComparison, compare
from downstream_tasks.scoring.weighted import ScoredRun

UNTRAINED = "random_weights"  # in the registry of features
CHANCE = "chance"
# The best row is picked by the very numbers that it is compared by, so it looks better than it is.
PICKED = "reference picked as the best on these test people"

Runs = Mapping[str, Sequence[ScoredRun]]  # test predictions of each row, by its label


def compare_rows(
    rows: Sequence[MethodResult],
    runs: Runs,
    metric: str,
    design: Design,
    *,
    n_exchanges: int,
    scored_as: str | None = None,
) -> tuple[Comparison, ...]:
    """Every row against FC, the model against its untrained copy and the best baseline, and each
    baseline with the model against the baseline alone.

    ``scored_as`` is the name of ``metric`` in the scores, if it differs. What is compared with the
    best baseline says so in ``test``: that baseline was picked on the people it is compared on.
    """

    def paired(method: str, reference: str) -> PairedComparison:
        return compare(
            runs[method],
            runs[reference],
            scored_as or metric,
            design,
            n_exchanges=n_exchanges,
        )

    return compare_labels(rows, metric, paired)


def compare_labels(
    rows: Sequence[MethodResult],
    metric: str,
    paired: Callable[[str, str], PairedComparison],
) -> tuple[Comparison, ...]:
    """The comparisons of :func:`compare_rows`, made by ``paired`` of the labels of rows."""
    comparisons = []
    for method, reference, note in _pairs(rows, metric):
        found = paired(method.label, reference.label)
        test = ", ".join(filter(None, (found.test, note)))
        comparisons.append(
            Comparison(
                method.label,
                reference.label,
                metric,
                found.difference,
                found.interval,
                found.p,
                test,
            )
        )
    return tuple(comparisons)


def best_baseline(
    rows: Sequence[MethodResult], metric: str, confounds_removed: bool = False
) -> MethodResult | None:
    """The best row without a trained encoder that had what the model had: confounds, or not."""
    sign = direction(metric)
    rows = [row for row in rows if row.kind == "baseline" and not row.other_target]
    rows = [row for row in rows if row.confounds_removed == confounds_removed]
    defined = [row for row in rows if row.mean[metric] == row.mean[metric]]
    return max(defined, key=lambda row: sign * row.mean[metric], default=None)


def _pairs(
    rows: Sequence[MethodResult], metric: str
) -> list[tuple[MethodResult, MethodResult, str]]:
    """Pairs of a row and its reference, each once, and what is to be said of the reference."""
    pairs: dict[tuple[str, str], tuple[MethodResult, MethodResult, str]] = {}

    def add(method: MethodResult, reference: MethodResult | None, note: str = "") -> None:
        if reference is not None and method is not reference:
            pairs.setdefault((method.label, reference.label), (method, reference, note))

    # A row of another target has nothing in common with the others to be better at.
    compared = [row for row in rows if row.representation != CHANCE and not row.other_target]
    fc = next((row for row in compared if row.name == FC_NAME), None)
    for row in compared:
        add(row, fc)
        # Like with like: with confounds, or without.
        corrected = [r for r in compared if r.confounds_removed == row.confounds_removed]
        if row.kind == "joint":  # what the model adds to the baseline, with the same head
            alike = [r for r in corrected if r.head == row.head]
            bases = [r for r in alike if joint_name(r.representation) == row.representation]
            add(row, bases[0] if bases else None)
        if row.kind == "model":
            untrained = [r for r in corrected if r.representation == UNTRAINED]
            alike = [r for r in untrained if r.head == row.head] or untrained
            add(row, alike[0] if alike else None)
            add(row, best_baseline(corrected, metric, row.confounds_removed), PICKED)
    return list(pairs.values())
