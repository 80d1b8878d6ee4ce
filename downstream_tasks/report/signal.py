"""The first table of imputation and forecast: what a reader who sees nothing else needs."""

from typing import Literal

from downstream_tasks.report.cells import (
    interval_text,
    markdown_table,
    number_text,
    p_text,
    undefined,
)
from downstream_tasks.report.results import Comparison, MethodResult, Results
from downstream_tasks.scoring.paired import verdict

# What the titles of rows end with, by the input of ``signal.global_signal``.
VARIANTS = {
    "as_trained": "",
    "keep": ", global signal kept",
    "remove": ", global signal removed",
}
MODEL, UNTRAINED = "model.predictor", "untrained.predictor"
# Of the comparison with the baseline that predicts the training people best.
PICKED_IN_TRAINING = "reference picked by cross-validation over the training people"
_ASKED = {
    "imputation": "signal of ROIs that are hidden at all times, from the other ROIs",
    "forecast": "the last frames of all ROIs, from those before",
}
_TAUGHT = {
    "above": "Pretraining taught the network something about the signal of {}",
    "below": "The network knows less about the signal of {} than before pretraining",
    "neither": "It is not shown that pretraining taught the network about the signal of {}",
}
_ALONE = {"above": "more than", "below": "less than", "neither": "what cannot be told apart from"}
_ADDS = {
    "above": "add to that",
    "below": "take from that",
    "neither": "are not shown to add to that",
}


def signal_summary(results: Results) -> str:
    """A table of the pretrained network, its untrained copy and raw baselines, and what it says."""
    parts = []
    for suffix in VARIANTS.values():
        by_name = {r.representation: r for r in results.rows if _variant(r) == suffix}
        if MODEL not in by_name:
            continue
        people = next((c.n_people for c in results.comparisons if c.n_people is not None), 0)
        header = [f"Hidden signal of {people} people by", "R2", "95 % interval"]
        header += ["Gain (95 % interval)", "People who gain", "p (Holm)"]
        lines = [_line(results, by_name, row) for row in _shown(list(by_name.values()))]
        parts += [markdown_table(header, lines), _meaning(results, by_name)]
    if parts:
        parts.append(
            f"Asked is {_ASKED[results.protocol]}. The gain of a row is how far the pretrained "
            "network is above it; of a row with a +, what the features add to that baseline alone. "
            "Nothing was fitted or chosen on these people."
        )
    return "\n\n".join(parts)


def _variant(row: MethodResult) -> str:
    return next(
        (suffix for suffix in VARIANTS.values() if suffix and row.name.endswith(suffix)), ""
    )


def _shown(rows: list[MethodResult]) -> list[MethodResult]:
    """The predictor, its untrained copy, what is fitted to the raw signal, what features add."""
    by_name = {row.representation: row for row in rows}
    first = [by_name[name] for name in (MODEL, UNTRAINED) if name in by_name]
    raw = [r for r in rows if r.kind == "baseline" and "." not in r.representation]
    return [*first, *raw, *(r for r in rows if r.kind == "joint")]


def _line(results: Results, by_name: dict[str, MethodResult], row: MethodResult) -> list[str]:
    title = f"**{row.name}**" if row.representation == MODEL else row.name
    cells = [title, number_text(row.mean["r2"]), interval_text(row.interval["r2"])]
    found = _gain(results, by_name, row)
    if found is None:
        return [*cells, "", "", ""]
    return [
        *cells,
        f"{found.difference:+.3f} ({interval_text(found.interval)})",
        f"{found.n_gain} of {found.n_people}",
        p_text(found.p_adjusted),
    ]


def _gain(
    results: Results, by_name: dict[str, MethodResult], row: MethodResult
) -> Comparison | None:
    base, plus, _ = row.representation.partition("+")
    pair = (row, by_name.get(base)) if plus else (by_name[MODEL], row)
    return results.comparison(*pair)


def _meaning(results: Results, by_name: dict[str, MethodResult]) -> str:
    """One sentence of what these numbers mean, and what not, by the comparisons themselves."""
    model = by_name[MODEL]
    seen = results.checkpoint.test_people_in_pretraining
    people = "people whom it never saw" if seen == 0 else "these people"
    said = _TAUGHT[_finding(results.comparison(model, by_name.get(UNTRAINED)))].format(people)
    picked = [c for c in results.comparisons if PICKED_IN_TRAINING in c.test]
    for best in by_name.values():
        if any((c.method, c.reference) == (model.label, best.label) for c in picked):
            said += f"; alone it predicts {_ALONE[_finding(results.comparison(model, best))]} "
            said += f"{best.name}, which predicts the training people best of the raw baselines"
            joint = by_name.get(f"{best.representation}+model")
            if joint is not None:
                said += f", and its features {_ADDS[_finding(results.comparison(joint, best))]}"
    return f"**What this means.** {said}; that says nothing of traits, states or diseases."


def _finding(comparison: Comparison | None) -> Literal["above", "below", "neither"]:
    """Where interval and adjusted p say so both."""
    if comparison is None or undefined(comparison.difference):
        return "neither"
    found = verdict(comparison.interval, comparison.p_adjusted)
    return found if found in ("above", "below") else "neither"
