"""Checkpoint against checkpoint: result folders of one task, paired over their test people.

Read from ``predictions.tsv``, so nothing is computed again. Folders of other test people, or of
other runs (seeds, folds), are not compared: their difference would be one of people too.
"""

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from downstream_tasks.report.cells import METRIC_TITLES, interval_text, markdown_table
from downstream_tasks.report.results import MethodResult, Results
from downstream_tasks.scoring.design import Design
from downstream_tasks.scoring.metrics import direction
from downstream_tasks.scoring.paired import PairedComparison, compare, verdict
from downstream_tasks.scoring.survival import signed_times
from downstream_tasks.scoring.weighted import ScoredRun

PREDICTIONS_FILE = "predictions.tsv"
_RUN = ["seed", "fold", "draw", "clip", "other_clip"]
_UNIT = ("participant_id", "session", "run", "onset")
# Two training sets give two scales of z: errors are compared in the target's own unit.
_OF_RAW = {"mse": "mse_raw", "mae": "mae_raw"}


@dataclass(frozen=True)
class CheckpointPair:
    """The models of two folders; ``found`` or, where they cannot be compared, the ``reason``."""

    task: str
    protocol: str
    first: str
    second: str
    metric: str
    found: PairedComparison | None = None
    reason: str = ""


def compare_checkpoints(results: Mapping[Path, Results]) -> list[CheckpointPair]:
    """Every two folders of the same task and protocol; ``results`` by the paths of their files."""
    pairs = []
    for (path, a), (other, b) in itertools.combinations(results.items(), 2):
        if (a.task, a.protocol, a.type) != (b.task, b.protocol, b.type):
            continue
        if path.parent.name == "eval" or other.parent.name == "eval":
            continue  # the folder above, scored again
        metric = _OF_RAW.get(a.main_metric, a.main_metric)
        if a.type == "fingerprint":  # of the pairs' scores predictions.tsv says nothing
            metric = "identification"
        found, reason = None, _contradiction(a, b)
        if not reason:
            found, reason = _compare(path.parent, a, other.parent, b, metric)
        pairs.append(
            CheckpointPair(
                a.task, a.protocol, str(path.parent), str(other.parent), metric, found, reason
            )
        )
    return pairs


def pairs_markdown(pairs: Sequence[CheckpointPair]) -> str:
    """The comparisons as text, then what was not compared and why."""
    if not pairs:
        return ""
    parts = []
    if compared := [pair for pair in pairs if pair.found is not None]:
        header = ["Task", "Protocol", "First", "Second", "Metric", "First - second"]
        header += ["95 % interval", "p", "The first is"]
        lines = [
            [
                *(pair.task, pair.protocol, pair.first, pair.second, METRIC_TITLES[pair.metric]),
                f"{pair.found.difference:+.3f}",
                interval_text(pair.found.interval),
                "n/a" if np.isnan(pair.found.p) else f"{pair.found.p:.4f}",
                _said(pair),
            ]
            for pair in compared
        ]
        tests = ", ".join(dict.fromkeys(pair.found.test for pair in compared if pair.found.test))
        parts += [
            "Checkpoint against checkpoint, paired over the same test people:",
            markdown_table(header, lines),
            f"p: {tests}; not corrected for the number of comparisons.",
        ]
    if refused := [pair for pair in pairs if pair.found is None]:
        lines = [f"- {pair.first} and {pair.second}: {pair.reason}" for pair in refused]
        parts.append("Not compared:\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def pairs_table(pairs: Sequence[CheckpointPair]) -> pd.DataFrame:
    """The comparisons as numbers, one line each."""
    lines = []
    for pair in pairs:
        line = {"task": pair.task, "protocol": pair.protocol, "first": pair.first}
        line |= {"second": pair.second, "metric": pair.metric}
        if pair.found is not None:
            low, high = pair.found.interval
            line |= {"difference": pair.found.difference, "low": low, "high": high}
            line |= {"p": pair.found.p, "test": pair.found.test}
        lines.append(line | {"not_compared": pair.reason})
    return pd.DataFrame(lines)


def _said(pair: CheckpointPair) -> str:
    better = {"above": "better", "below": "worse"}
    if direction(pair.metric) < 0:
        better = {"above": "worse", "below": "better"}
    said = verdict(pair.found.interval, pair.found.p)
    return better.get(said, said)


def _contradiction(a: Results, b: Results) -> str:
    """Why the two cannot be compared, by what their ``results.json`` say; empty if they can."""
    for what, here, there in (
        ("target", a.target, b.target),
        ("scored unit", a.unit, b.unit),
        ("classes", ", ".join(a.classes), ", ".join(b.classes)),
        ("main metric", a.main_metric, b.main_metric),
    ):
        if here != there:
            return f"another {what} ({here}; {there})"
    if a.model is None or b.model is None:
        return "no row of a model"
    return ""


def _compare(
    folder: Path, a: Results, other: Path, b: Results, metric: str
) -> tuple[PairedComparison | None, str]:
    tables = []
    for place, results in ((folder, a), (other, b)):
        path = place / PREDICTIONS_FILE
        if not path.is_file():
            return None, f"{path} is missing"
        table = _predictions(path, results.model)
        if "group" not in table or table.empty:
            return None, f"{path} has no people and families of the model's row"
        tables.append(table)
    keys = [[*_RUN, *(name for name in _UNIT if name in table)] for table in tables]
    first, second = (t.sort_values(k, kind="stable") for t, k in zip(tables, keys, strict=True))
    runs = [sorted({*t[_RUN].itertuples(index=False, name=None)}) for t in (first, second)]
    if runs[0] != runs[1]:
        return None, f"other runs ({len(runs[0])} and {len(runs[1])} of seeds, folds and draws)"
    if keys[0] != keys[1] or not _same(first[keys[0]], second[keys[1]]):
        people = [set(table["participant_id"]) for table in (first, second)]
        shared = len(people[0] & people[1])
        return None, (
            f"other test people ({len(people[0])} and {len(people[1])}, {shared} in both, not the "
            "same in every run); evaluate both on one split by split.file"
        )
    truth = ["time", "event"] if a.type == "survival" else ["target"]
    if not _same(first[truth], second[truth]):
        return None, "the same test people have other targets"
    scored = [_scored_runs(table, a) for table in (first, second)]
    scored_as = "accuracy" if a.type == "fingerprint" else metric
    return compare(*scored, scored_as, _design(first, a)), ""


def _predictions(path: Path, model: MethodResult) -> pd.DataFrame:
    """What the model predicted; names are text, numbers of runs -1 where none."""
    names = dict.fromkeys(("participant_id", "session", "run", "group", "method", "head"), str)
    table = pd.read_csv(path, sep="\t", dtype=names, na_values=["n/a"], keep_default_na=False,
                        quoting=csv.QUOTE_MINIMAL)  # fmt: skip
    table = table[(table["method"] == model.name) & (table["head"] == model.head)]
    if "forward" in table:  # a fingerprint: whom everyone was matched to
        table = table.assign(target=table["participant_id"])
    named = {name: table[name].fillna("n/a") for name in names if name in table}
    missing = pd.Series(np.nan, table.index)
    runs = {name: table.get(name, missing).fillna(-1).astype(int) for name in _RUN}
    table = table.assign(**named, **runs)
    return table.reset_index(drop=True)


def _same(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    return len(a) == len(b) and all((a[name].to_numpy() == b[name].to_numpy()).all() for name in a)


def _scored_runs(table: pd.DataFrame, results: Results) -> list[ScoredRun]:
    runs = []
    for _, part in table.groupby(_RUN):
        clusters = part["group"].to_numpy(str)
        if results.type == "fingerprint":
            hit = (part[["forward", "backward"]].eq(part["target"], axis=0)).to_numpy().T.ravel()
            scores = np.stack([hit, ~hit], axis=1).astype(float)
            runs.append(ScoredRun(np.zeros(len(hit), dtype=int), scores, np.tile(clusters, 2)))
        elif results.classes:
            labels = part["target"].astype(str).to_numpy()
            y = np.array([results.classes.index(label) for label in labels])
            scores = part[[f"p_{label}" for label in results.classes]].to_numpy(float)
            runs.append(ScoredRun(y, scores, clusters))
        elif results.type == "survival":
            y = signed_times(part["time"].to_numpy(float), part["event"] == 1)
            runs.append(ScoredRun(y, part["risk"].to_numpy(float), clusters, survival=True))
        else:
            y, scores = (part[name].to_numpy(float) for name in ("target", "predicted"))
            runs.append(ScoredRun(y, scores, clusters))
    return runs


def _design(table: pd.DataFrame, results: Results) -> Design:
    people = [tuple(part["participant_id"]) for _, part in table.groupby(_RUN)]
    n_train, n_test = (
        float(np.mean([getattr(split, part) for split in results.splits] or [0]))
        for part in ("train", "test")
    )
    if (table["fold"] >= 0).any():
        return Design("folds", n_train, n_test)
    return Design("one_split" if len(set(people)) == 1 else "resampled", n_train, n_test)
