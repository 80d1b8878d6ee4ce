"""Labelled examples of a data-set folder: who, which run, from which frame, with which target.

An *example* is what gets one prediction: a whole run, or an event of a run. A *unit* is what gets
one score: a person (mean over their runs), a run, or an event.
"""

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from downstream_tasks.cohort.families import FAMILY_KEY, family_columns
from downstream_tasks.cohort.horizon import HORIZON_CLASSES, label_by_horizon, label_by_time
from downstream_tasks.config import DataConfig
from downstream_tasks.scoring.survival import times_and_events
from src.datasets.clip_input import ClipInput
from src.datasets.folder import DataFolder
from src.utils.errors import UserError, nearest

logger = logging.getLogger(__name__)

EVENTS_FILE = "events.tsv"
UNIT_COLUMNS = {
    "person": ["participant_id"],
    "run": ["participant_id", "session", "run"],
    "event": ["participant_id", "session", "run", "onset"],
}


@dataclass(frozen=True)
class Dropped:
    """What was left out for one reason: how many, and which."""

    n: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class CohortSummary:
    """Who is evaluated; ``class_counts`` and the target's statistics are over scored units.

    ``median_time`` is that of the follow-up, with or without the event.
    """

    n_people: int
    n_groups: int
    n_units: int
    n_examples: int
    dropped: dict[str, Dropped] = field(default_factory=dict)
    class_counts: dict[str, int] | None = None
    target_mean: float | None = None
    target_sd: float | None = None
    n_events: int | None = None
    median_time: float | None = None


@dataclass(frozen=True)
class Cohort:
    """Labelled examples and how they are scored.

    Attributes:
        examples: one row per example: ``row`` (in participants.tsv), ``start`` (frame, -1 = the
            whole run), ``participant_id``, ``group`` (people who must stay together), ``split``,
            ``unit`` (number of the scored unit).
        y: ``[n_examples]`` class numbers (int64), the target in its own unit (float64), or signed
            times to an event (``scoring.survival``).
        classes: labels in class order; empty for regression and survival.
        units: one row per scored unit: its name columns (participant_id, session, run, onset).
        dropped: reason -> names of what was left out.
        table: one row per example, all columns of participants.tsv (and of events.tsv).
        disjoint: its columns that keep people together.
        survival: whether ``y`` are times to an event.
    """

    examples: pd.DataFrame
    y: np.ndarray
    classes: tuple[str, ...]
    units: pd.DataFrame
    dropped: dict[str, list[str]] = field(default_factory=dict)
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    disjoint: tuple[str, ...] = ()
    survival: bool = False

    @property
    def dropped_summary(self) -> dict[str, Dropped]:
        """What was left out, by reason."""
        return {reason: Dropped(len(v), tuple(v)) for reason, v in self.dropped.items()}

    @property
    def is_classification(self) -> bool:
        return bool(self.classes)

    @property
    def type(self) -> str:
        """``data.type``."""
        if self.survival:
            return "survival"
        return "classification" if self.is_classification else "regression"

    @property
    def people(self) -> np.ndarray:
        """Participant id of each example."""
        return self.examples["participant_id"].to_numpy()

    def column(self, name: str, key: str) -> np.ndarray:
        """Values of a column of participants.tsv for each example; ``key`` asks for it.

        Raises:
            UserError: if there is no such column, or someone has no value.
        """
        if name not in self.table:
            raise UserError(
                f"{key}: participants.tsv has no column '{name}'."
                f"{nearest(name, self.table.columns)} It has: "
                f"{', '.join(_phenotypes(self.table))}."
            )
        missing = self.table[name].isna().to_numpy()
        if missing.any():
            who = sorted(set(self.people[missing]))
            shown = ", ".join(who[:10]) + (f" and {len(who) - 10} more" if len(who) > 10 else "")
            raise UserError(
                f"{key}: {len(who)} people have no value of '{name}' in participants.tsv: {shown}. "
                "Fill it in, or leave these people's target empty to evaluate without them."
            )
        return self.table[name].to_numpy()

    @property
    def unit_groups(self) -> np.ndarray:
        """Group of each scored unit: what was sampled together."""
        first = self.examples.drop_duplicates("unit").sort_values("unit")
        return first["group"].to_numpy(str)

    def unit_mean(
        self, values: np.ndarray, examples: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Average what was predicted for the examples of one unit.

        ``values`` ``[len(examples), ...]`` belong to the example numbers ``examples``. Returns the
        unit numbers, the mean values and the targets of those units.
        """
        units, first, inverse = np.unique(
            self.examples["unit"].to_numpy()[examples], return_index=True, return_inverse=True
        )
        total = np.zeros((len(units), *values.shape[1:]))
        np.add.at(total, inverse, values)
        counts = np.bincount(inverse).reshape(-1, *[1] * (values.ndim - 1))
        return units, total / counts, self.y[np.asarray(examples)[first]]

    def summary(self) -> CohortSummary:
        """Counts for the log and results.json."""
        per_unit = self.y[self.examples.drop_duplicates("unit").index]
        if self.is_classification:
            counts = np.bincount(per_unit, minlength=len(self.classes)).tolist()
            about = {"class_counts": dict(zip(self.classes, counts, strict=True))}
        elif self.survival:
            time, happened = times_and_events(per_unit)
            about = {"n_events": int(happened.sum()), "median_time": float(np.median(time))}
        else:
            about = {"target_mean": float(per_unit.mean()), "target_sd": float(per_unit.std())}
        return CohortSummary(
            n_people=int(self.examples["participant_id"].nunique()),
            n_groups=int(self.examples["group"].nunique()),
            n_units=len(self.units),
            n_examples=len(self.examples),
            dropped=self.dropped_summary,
            **about,
        )


def load_cohort(
    folder: DataFolder, config: DataConfig, clip_input: ClipInput, patch_size: int
) -> Cohort:
    """Read the labelled examples of a folder; log and list everything that is left out.

    ``clip_input`` says how long a clip is and which runs are left out for their length or bad ROIs;
    events are placed by patches of ``patch_size`` samples.

    Raises:
        UserError: on a target column that is missing, not numeric (regression), of one value only,
            or of other classes than stated; a target that differs between runs of one person scored
            as a whole; no one left.
    """
    runs, dropped = usable_runs(folder, config, clip_input)
    where = f"{folder.path / 'participants.tsv'}"
    if config.unit == "event":
        where = str(folder.path / EVENTS_FILE)
        table, dropped["events without room for a clip"] = _read_events(
            folder, runs, config, clip_input, patch_size
        )
    else:
        table = runs
    if config.horizon is not None:
        table, lost = label_by_horizon(table, config, where)
        config, dropped = replace(config, classes=config.classes or HORIZON_CLASSES), dropped | lost
    if config.type == "survival":
        table, lost = label_by_time(table, config, where)
        dropped |= lost
    if config.target not in table:
        raise UserError(
            f"{where} has no target column '{config.target}'."
            f"{nearest(config.target, _phenotypes(table))} It has: {', '.join(_phenotypes(table))}."
        )
    disjoint = family_columns(list(table.columns), config.disjoint, where)
    for key in disjoint:
        if key not in table and key != FAMILY_KEY:
            raise UserError(
                f"{where} has no column '{key}', in which splits must be disjoint (data.disjoint)."
                f"{nearest(key, table.columns)}"
            )
    table = table.sort_values(["row", "start"], kind="stable").reset_index(drop=True)
    missing = table[config.target].isna()
    dropped[f"no value of {config.target}"] = _unique_people(table[missing])
    table = table[~missing].reset_index(drop=True)
    if table.empty:
        raise UserError(f"{where}: no one has a value of '{config.target}'.")
    if config.type == "classification":
        labels = table[config.target].map(class_label)
        ignored = labels.isin([class_label(v) for v in config.ignore_labels])
        dropped["ignored class"] = _unique_people(table[ignored])
        table, labels = table[~ignored].reset_index(drop=True), labels[~ignored]
        classes = _check_classes(where, config, labels)
        y = labels.map({label: i for i, label in enumerate(classes)}).to_numpy(np.int64)
    else:
        classes, y = (), _check_numeric(where, config, table)
    dropped = {reason: names for reason, names in dropped.items() if names}
    for reason, names in dropped.items():
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        logger.warning("left out, %s: %d (%s)", reason, len(names), shown)

    columns = UNIT_COLUMNS[config.unit]
    units, unit_frame = _number_units(table, columns)
    _check_one_target_per_unit(where, config, units, y, unit_frame)
    examples = table[["row", "start", "participant_id", "split"]].assign(
        group=disjoint_groups(table, disjoint), unit=units
    )
    together = tuple(key for key in disjoint if key in table)
    survival = config.type == "survival"
    return Cohort(examples, y, classes, unit_frame, dropped, table, together, survival)


def usable_runs(
    folder: DataFolder, config: DataConfig, clip_input: ClipInput
) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """The runs of a folder that clips can be taken of, with ``row`` and ``start``, and the others.

    Raises:
        UserError: if ``data.runs`` names one that is not there.
    """
    keep = folder.rows(bad_rois="exclude" if clip_input.bad_rois == "exclude" else "keep")
    runs = folder.runs.assign(row=np.arange(len(folder.runs)), start=-1)
    dropped = {"runs with bad ROIs": _run_names(runs.loc[folder.rows()].drop(index=keep))}
    runs = runs.loc[keep]
    if config.runs:
        if unknown := sorted(set(config.runs) - set(runs["run"])):
            there = sorted(set(runs["run"]))
            raise UserError(
                f"{folder.path / 'participants.tsv'} has no run '{unknown[0]}' (data.runs)."
                f" It has: {', '.join(there)}."
            )
        runs = runs[runs["run"].isin(config.runs)]
    if clip_input.short_runs == "skip":
        short = runs["frames"] < clip_input.frames_needed(runs["tr"].to_numpy())
        dropped["runs too short for a clip"] = _run_names(runs[short])
        runs = runs[~short]
    return runs, dropped


def class_label(value: object) -> str:
    """Text of a class label; 1, 1.0 and "1" are the same (a column with gaps is read as float)."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def disjoint_groups(table: pd.DataFrame, keys: Sequence[str]) -> np.ndarray:
    """Group of each row: rows that share a person, or a value of any of ``keys``, stay together.

    A key that is not a column is left out; a missing value shares with no one. Groups are named
    after their first person.
    """
    people, names = pd.factorize(table["participant_id"])
    edges = [(people, people)]
    n_nodes = len(names)
    for key in keys:
        if key in table:
            codes = pd.factorize(table[key])[0]
            has = codes >= 0
            edges.append((people[has], n_nodes + codes[has]))
            n_nodes += int(codes.max(initial=-1)) + 1
    a, b = (np.concatenate(part) for part in zip(*edges, strict=True))
    component = connected_components(
        coo_array((np.ones(len(a)), (a, b)), shape=(n_nodes, n_nodes)), directed=False
    )[1]
    of_person = component[: len(names)]
    first_person = {c: names[i] for i, c in reversed(list(enumerate(of_person)))}
    return np.array([first_person[c] for c in of_person[people]], dtype=object)


# --- events --------------------------------------------------------------------------------------


def _read_events(
    folder: DataFolder,
    runs: pd.DataFrame,
    config: DataConfig,
    clip_input: ClipInput,
    patch_size: int,
) -> tuple[pd.DataFrame, list[str]]:
    """Events with the start frame of their clip, and the names of those without room.

    The scored patch begins ``delay_seconds`` after the onset (the haemodynamic delay) and is
    always patch ``scored_patch`` of the clip, so that its position tells nothing about the class.
    """
    path = folder.path / EVENTS_FILE
    if not path.exists():
        raise UserError(f"{path} is missing: a task of unit 'event' reads its labels from there.")
    keys = ["participant_id", "session", "run"]
    events = pd.read_csv(
        path, sep="\t", dtype=dict.fromkeys(keys, str), na_values=["n/a"], quoting=csv.QUOTE_NONE
    )
    if absent := [name for name in (*keys, "onset") if name not in events]:
        raise UserError(f"{path} lacks the column {', '.join(absent)}.")
    n_samples = clip_input.crop_size[1]
    if not 0 <= config.scored_patch < n_samples // patch_size:
        raise UserError(
            f"scored_patch is {config.scored_patch}; a clip of {n_samples} frames has "
            f"patches 0 to {n_samples // patch_size - 1}."
        )
    table = events.merge(runs.drop(columns="start"), on=keys, suffixes=("", "_of_run"))
    if table.empty:
        raise UserError(f"{path} names no run of participants.tsv (or only runs with bad ROIs).")
    tr = table["tr"].to_numpy()
    scored = (table["onset"] + config.delay_seconds) / table["tr"]
    table["start"] = (
        (scored - config.scored_patch * patch_size * clip_input.steps(tr)).round().astype(int)
    )
    end = table["start"] + clip_input.frames_needed(tr)
    fits = (table["start"] >= 0) & (end <= table["frames"])
    names = [
        f"{'/'.join(event)} at {onset:g} s"
        for *event, onset in table.loc[~fits, [*keys, "onset"]].itertuples(index=False)
    ]
    return table[fits], names


# --- targets -------------------------------------------------------------------------------------


def _check_classes(where: str, config: DataConfig, labels: pd.Series) -> tuple[str, ...]:
    found = sorted(labels.unique())
    classes = tuple(class_label(v) for v in config.classes) or tuple(found)
    if extra := sorted(set(found) - set(classes)):
        raise UserError(
            f"{where}: '{config.target}' has the values {', '.join(found)}; classes are "
            f"{', '.join(classes)}. Add {', '.join(extra)} to classes or to ignore_labels."
        )
    if len(found) < 2:
        raise UserError(
            f"{where}: '{config.target}' has one class only, '{found[0]}'; a classifier needs two."
            if found
            else f"{where}: '{config.target}' has no value left after ignore_labels."
        )
    if absent := [label for label in classes if label not in found]:
        raise UserError(
            f"{where}: no one is in class {', '.join(absent)} of '{config.target}'; "
            f"found {', '.join(found)}."
        )
    if config.nb_classes not in (None, len(classes)):
        raise UserError(
            f"{where}: '{config.target}' has {len(classes)} classes ({', '.join(classes)}), "
            f"nb_classes is {config.nb_classes}."
        )
    return classes


def _check_numeric(where: str, config: DataConfig, table: pd.DataFrame) -> np.ndarray:
    values = pd.to_numeric(table[config.target], errors="coerce")
    wrong = ~np.isfinite(values)
    if wrong.any():
        first = table.loc[wrong.idxmax()]
        raise UserError(
            f"{where}: '{config.target}' must be a number for regression; {int(wrong.sum())} are "
            f"not, first '{first[config.target]}' of {first['participant_id']}."
        )
    if values.nunique() < 2:
        raise UserError(
            f"{where}: '{config.target}' is {values.iloc[0]:g} for everyone; nothing to predict."
        )
    return values.to_numpy(float)


def _number_units(table: pd.DataFrame, columns: list[str]) -> tuple[np.ndarray, pd.DataFrame]:
    numbers = table.groupby(columns, sort=False, dropna=False).ngroup().to_numpy()
    return numbers, table[columns].drop_duplicates().reset_index(drop=True)


def _check_one_target_per_unit(
    where: str, config: DataConfig, units: np.ndarray, y: np.ndarray, names: pd.DataFrame
) -> None:
    differing = np.flatnonzero(pd.Series(y).groupby(units).nunique().to_numpy() > 1)
    if differing.size:
        unit = names.iloc[differing[0]]
        raise UserError(
            f"{where}: '{config.target}' differs between the runs of {differing.size} "
            f"{config.unit}s, first {'/'.join(map(str, unit))}. Score each run: unit: run."
        )


# --- names for messages --------------------------------------------------------------------------


def _phenotypes(table: pd.DataFrame) -> list[str]:
    fixed = {"session", "run", "frames", "tr", "split", "bad_rois", "row", "start", "onset"}
    return [name for name in table.columns if name not in fixed]


def _run_names(runs: pd.DataFrame) -> list[str]:
    return ["/".join(key) for key in runs[UNIT_COLUMNS["run"]].itertuples(index=False)]


def _unique_people(table: pd.DataFrame) -> list[str]:
    return table["participant_id"].drop_duplicates().tolist()
