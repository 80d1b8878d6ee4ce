"""The format of a data-set folder: file names, columns and checks."""

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...utils.errors import UserError, nearest

FORMAT = 1
SPLITS = ("train", "valid", "test")
EXCLUDED = "excluded"  # in place of a split: runs in the table that nothing reads
KEY_COLUMNS = ("participant_id", "session", "run")
RUN_COLUMNS = (*KEY_COLUMNS, "frames", "tr", "split", "bad_rois")
MISSING = "n/a"

SERIES_FILE = "timeseries.npy"
TABLE_FILE = "participants.tsv"
DESCRIPTION_FILE = "dataset.json"
PROGRESS_FILE = "writing.jsonl"
NORMALIZATION_FILE = "normalization.npz"


def check_split(where: str, split: str) -> str:
    """Return ``split`` if it is train, valid or test; else raise a :class:`UserError`."""
    if split not in SPLITS:
        names = ", ".join(SPLITS)
        raise UserError(f"{where}: split '{split}' is not one of {names}.{nearest(split, SPLITS)}")
    return split


def check_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Return ROI labels as a tuple; a :class:`UserError` unless each is a usable, unique name."""
    labels = tuple(str(label) for label in labels)
    if not labels:
        raise UserError("roi_labels is empty.")
    for label in labels:
        if not label or label == MISSING or any(c in label for c in ";\t\r\n"):
            raise UserError(f"ROI label {label!r}: give text without ';', tabs and line breaks.")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise UserError(f"ROI label '{twice}' occurs more than once; every ROI needs its own.")
    return labels


def check_series(
    name: str, series: np.ndarray, roi_labels: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Return a run as C-order float32 ``[R, T]`` with its bad rows set to zero, and their labels.

    A row is bad if it holds NaN or Inf or does not vary.

    Raises:
        UserError: if it is not ``[R, T]`` real numbers with T >= 2, or every row is bad.
    """
    series = np.asarray(series)
    if series.dtype.kind not in "fiu":
        raise UserError(f"{name}: values of type {series.dtype}, expected real numbers.")
    if series.ndim != 2 or series.shape[0] != len(roi_labels) or series.shape[1] < 2:
        raise UserError(
            f"{name}: shape {series.shape}, expected ({len(roi_labels)}, T): one row for each ROI "
            "of the atlas, two frames or more."
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes Inf and is reported
        values = np.array(series, dtype="<f4", order="C")
    finite = np.isfinite(values).all(axis=1)
    values[~finite] = 0
    # A constant that went through arithmetic differs from itself by a few roundings.
    rounding = 8 * np.finfo(np.float32).eps * np.abs(values).max(axis=1)
    bad = ~finite | (np.ptp(values, axis=1) <= rounding)
    if bad.all():
        raise UserError(f"{name}: every ROI is constant or not finite; there is nothing to keep.")
    values[bad] = 0
    return values, [roi_labels[i] for i in np.flatnonzero(bad)]


def check_tr(name: str, tr: float) -> float:
    """Return the repetition time in seconds; a :class:`UserError` unless positive and finite."""
    try:
        seconds = float(tr)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: tr is {tr!r}, it must be a number of seconds.") from error
    if not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"{name}: tr is {tr}, it must be a positive number of seconds.")
    return seconds


def cell(where: str, value: Any) -> str:
    """Return a value as the text of a cell of participants.tsv; missing values become "n/a"."""
    if not pd.api.types.is_scalar(value):
        raise UserError(f"{where}: {type(value).__name__} cannot be a cell of {TABLE_FILE}.")
    text = MISSING if pd.isna(value) else str(value).strip() or MISSING
    if any(c in text for c in "\t\r\n"):
        raise UserError(f"{where}: {text!r} holds a tab or line break, which {TABLE_FILE} cannot.")
    return text


def read_description(folder: Path) -> dict[str, Any]:
    """Return dataset.json of a finished folder; a :class:`UserError` if it is not one."""
    if (folder / PROGRESS_FILE).exists():
        raise UserError(
            f"{folder} is unfinished ({PROGRESS_FILE} is there): the program that wrote it was "
            "stopped. Run it again; it goes on where it was."
        )
    files = (DESCRIPTION_FILE, TABLE_FILE, SERIES_FILE)
    if missing := [name for name in files if not (folder / name).exists()]:
        raise UserError(
            f"{folder} is not a data-set folder: it lacks {', '.join(missing)}. "
            "data/README.md says how to make one."
        )
    path = folder / DESCRIPTION_FILE
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise UserError(f"{path}: 'format' must be {FORMAT}; another program made this file.")
    if absent := {"atlas", "roi_labels", "run_order"} - description.keys():
        raise UserError(f"{path} lacks {', '.join(sorted(absent))}.")
    return description


def read_runs(folder: Path, description: dict[str, Any], dtype: Any) -> pd.DataFrame:
    """Read participants.tsv and check it, alone and against dataset.json.

    "n/a" and empty cells are missing; other text stays as it is. ``dtype`` as for
    ``pandas.read_csv``.
    """
    path = folder / TABLE_FILE
    try:
        runs = pd.read_csv(
            path,
            sep="\t",
            dtype=dtype,
            na_values=[MISSING, ""],
            keep_default_na=False,
            quoting=csv.QUOTE_NONE,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a tab-separated table: {error}") from error
    _check_table(path, runs)
    if run_order(runs) != description["run_order"]:
        raise UserError(
            f"{path}: rows were added, removed or sorted since the folder was written, so they no "
            "longer match the series. Restore them; split and phenotypes may change."
        )
    return runs


def _check_table(path: Path, runs: pd.DataFrame) -> None:
    """Raise a :class:`UserError` naming the first line of a participants.tsv that is wrong."""
    if absent := [name for name in RUN_COLUMNS if name not in runs]:
        raise UserError(f"{path} lacks the column {', '.join(absent)}.")
    frames = pd.to_numeric(runs["frames"], errors="coerce")
    tr = pd.to_numeric(runs["tr"], errors="coerce")
    may_be = (*SPLITS, EXCLUDED)
    for column, allowed, good in (
        *((key, "a name", runs[key].notna()) for key in KEY_COLUMNS),
        ("frames", "a positive integer", frames.gt(0) & frames.mod(1).eq(0)),
        ("tr", "a positive number of seconds", tr.gt(0) & np.isfinite(tr)),
        ("split", f"one of {', '.join(may_be)}", runs["split"].isin(may_be)),
        ("the run", "listed once", ~runs.duplicated(list(KEY_COLUMNS))),
    ):
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            value = runs[column][row] if column in runs else "/".join(runs.loc[row, [*KEY_COLUMNS]])
            raise UserError(f"{path}, line {row + 2}: {column} is '{value}', it must be {allowed}.")
    splits = runs.groupby("participant_id")["split"].nunique()
    if (both := splits.index[splits > 1]).size:
        raise UserError(
            f"{path}: {both.size} people have runs in more than one split, first '{both[0]}'. "
            "A person belongs to one split."
        )


def run_order(runs: pd.DataFrame) -> str:
    """Return a fingerprint of which run is in which place of timeseries.npy."""
    columns = [runs[name].astype(str) for name in (*KEY_COLUMNS, "frames")]
    lines = "\n".join("\t".join(cells) for cells in zip(*columns, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()
