"""What an experiment found, in Markdown: endpoints first, then the means behind them."""

import math
from collections.abc import Sequence

import pandas as pd

from scripts.ablation.endpoints import Comparison
from scripts.ablation.experiment import Plan

_P_AT_LEAST = 1e-5


def markdown(
    plan: Plan,
    table: pd.DataFrame,
    comparisons: Sequence[Comparison],
    fresh: Sequence[Comparison],
    notes: Sequence[str],
) -> str:
    """The report; ``fresh`` are the endpoints among people by whom nothing was chosen, if any."""
    e = plan.experiment
    lines = [f"# {e.name}", ""]
    lines += [f"**{k}**: {v}  " for k, v in _head(plan).items() if v]
    lines += ["", *(f"- {note}" for note in notes), ""]
    lines += ["## Endpoints", "", *_endpoint_table(comparisons), ""]
    lines += [
        "Differences are positive where the first is better, averaged over seeds within a person; "
        "families are clusters. Interval and p (t): paired t. p (flip): sign-flip test. Holm: "
        f"p (flip) corrected for these {len(comparisons)} comparisons.",
        "",
    ]
    if fresh:
        lines += ["## Among people by whom nothing was chosen", "", *_endpoint_table(fresh), ""]
    lines += ["## Means over people", "", *_mean_tables(plan, table)]
    return "\n".join(lines).rstrip() + "\n"


def _head(plan: Plan) -> dict[str, str]:
    e = plan.experiment
    people = "one split" if e.folds == 1 else f"{e.folds} folds"
    return {
        "question": e.question,
        "prediction": e.prediction,
        "design": f"{_count(plan.arms, 'arm')} x {_count(e.seeds, 'seed')}, {people}, "
        + ", ".join(each.label for each in plan.data),
    }


def _count(things: Sequence, name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _endpoint_table(comparisons: Sequence[Comparison]) -> list[str]:
    if not comparisons:
        return ["No endpoint has results yet."]
    several = len({c.data for c in comparisons}) > 1
    head = ["endpoint", *(["data"] * several), "arm", "score", "reference", "its score"]
    head += ["difference [95 % interval]", "gain", "p (t)", "p (flip)", "Holm"]
    lines = [head, ["---"] * len(head)]
    for c in comparisons:
        found = c.found
        arm = (
            c.arm
            if c.n_runs == c.n_runs_planned
            else f"{c.arm} ({c.n_runs} of {c.n_runs_planned} runs)"
        )
        lines.append(
            [
                c.endpoint.title,
                *([c.data] * several),
                arm,
                number(c.score),
                c.reference,
                number(c.reference_score),
                f"{number(found.mean, sign=True)} [{number(found.low, sign=True)}, "
                f"{number(found.high, sign=True)}]",
                f"{found.gain} of {found.n}",
                p_value(found.t_p),
                p_value(found.flip_p),
                p_value(c.holm),
            ]
        )
    return ["| " + " | ".join(line) + " |" for line in lines]


def _mean_tables(plan: Plan, table: pd.DataFrame) -> list[str]:
    """A table for each data set, task, variant and metric: rows are methods, columns are arms.

    Of tasks with endpoints, the metrics that these name; results.csv has all.
    """
    lines: list[str] = []
    named = {(e.task, e.metric) for e in plan.endpoints}
    tasks = {task for task, _ in named}
    arms = [arm.name for arm in plan.arms if arm.name in set(table["arm"])]
    keys = ["data", "task", "variant", "metric"]
    for key, rows in table.groupby(keys, sort=False):
        _, task, _, metric = key
        if task in tasks and (task, metric) not in named:
            continue
        by_person = rows.groupby(["method", "arm", "participant_id"], sort=False)["value"].mean()
        means = by_person.groupby(["method", "arm"], sort=False).mean().unstack("arm")
        n = rows["participant_id"].nunique()
        lines += [f"{' '.join(filter(None, key))}, mean over {n} people:", ""]
        lines += ["| method | " + " | ".join(arms) + " |", "|---|" + "---|" * len(arms)]
        for method, row in means.iterrows():
            cells = [number(row.get(arm, math.nan)) for arm in arms]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def number(value: float, sign: bool = False) -> str:
    """Three digits; ``n/a`` for what is not defined."""
    if not math.isfinite(value):
        return "n/a"
    return f"{value:+.3f}" if sign else f"{value:.3f}"


def p_value(p: float) -> str:
    """Two significant digits, as far as they go."""
    if not math.isfinite(p):
        return "n/a"
    return f"< {_P_AT_LEAST:g}" if p < _P_AT_LEAST else f"{p:.2g}"
