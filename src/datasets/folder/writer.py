"""Write a data-set folder run by run; an interrupted write goes on where it was.

While it is being written a folder holds ``writing.jsonl``, one line per run that is complete and on
disk. The file goes when the folder is finished.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from ...utils.errors import UserError
from ...utils.files import naming, replacing
from .format import (
    DESCRIPTION_FILE,
    FORMAT,
    MISSING,
    NORMALIZATION_FILE,
    PROGRESS_FILE,
    RUN_COLUMNS,
    SERIES_FILE,
    TABLE_FILE,
    cell,
    check_labels,
    check_series,
    check_split,
    check_tr,
    read_description,
    read_runs,
    run_order,
)

_HEADER_BYTES = 128  # numpy pads the header of a 1-D array to this, whatever the length
_ITEM_BYTES = 4
_COMMIT_SECONDS = 1.0  # two fsyncs per run would take longer than reading it on network disks


class FolderWriter:
    """Write a data-set folder run by run; only the rows of its table stay in memory.

    Use as a context manager. If the block raises or the process is killed, the runs that were
    complete stay (all but the last second's after a kill) and the next call with ``resume=True``
    goes on after them; ``written`` tells which to leave out. ``resume=True`` on a finished folder
    adds runs to it. One process writes a folder at a time.

    Args:
        path: the folder; made if missing.
        roi_labels: names of the R ROIs, in the order of the rows of every run.
        atlas: name of the parcellation.
        provenance: where the data come from (source, licence, processing), anything JSON can hold.
        resume: go on with what the folder holds. Without it an existing data set is an error.

    Raises:
        UserError: on labels that are not unique names, an existing data set without ``resume``, or
            one of another atlas with it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        roi_labels: Sequence[str],
        atlas: str,
        provenance: Mapping[str, Any],
        resume: bool = False,
    ) -> None:
        self.path = Path(path)
        self.roi_labels = check_labels(roi_labels)
        self.atlas = atlas
        self.provenance = dict(provenance)
        self.written: set[tuple[str, str, str]] = set()
        self._rows: list[dict[str, str]] = []
        self._split_of: dict[str, str] = {}
        self._end = _HEADER_BYTES  # byte after the last complete run
        self._series_path = self.path / SERIES_FILE
        self._progress_path = self.path / PROGRESS_FILE
        self._series_file: BinaryIO | None = None

        files = (SERIES_FILE, TABLE_FILE, DESCRIPTION_FILE, PROGRESS_FILE)
        found = [name for name in files if (self.path / name).exists()]
        if found and not resume:
            raise UserError(
                f"{self.path} already holds a data set ({', '.join(found)}); nothing was changed. "
                "Resume it, choose another folder, or remove it first."
            )
        self._finished = bool(found) and PROGRESS_FILE not in found
        if self._finished:
            self._adopt_finished()
        elif found:
            self._adopt_unfinished()
        size = self._series_path.stat().st_size if self._series_path.exists() else 0
        if self._rows and size < self._end:
            raise UserError(
                f"{self._series_path} has {size} bytes; its runs take {self._end}: "
                f"data were lost. Remove {self.path}, write it anew."
            )

    # --- what is already there ------------------------------------------------------------------

    def _check_same_rois(self, atlas: str, roi_labels: Sequence[str]) -> None:
        if atlas != self.atlas or tuple(roi_labels) != self.roi_labels:
            raise UserError(
                f"{self.path} holds atlas '{atlas}' with {len(roi_labels)} ROIs; the new runs have "
                f"atlas '{self.atlas}' with {len(self.roi_labels)} ROIs, or another order of them. "
                "Write them to another folder."
            )

    def _adopt(self, row: dict[str, str]) -> None:
        self._rows.append(row)
        self.written.add((row["participant_id"], row["session"], row["run"]))
        self._split_of[row["participant_id"]] = row["split"]
        self._end += _ITEM_BYTES * len(self.roi_labels) * int(row["frames"])

    def _adopt_finished(self) -> None:
        description = read_description(self.path)
        self._check_same_rois(description["atlas"], description["roi_labels"])
        for row in read_runs(self.path, description, dtype=str).to_dict("records"):
            self._adopt({key: cell(key, value) for key, value in row.items()})

    def _adopt_unfinished(self) -> None:
        # A kill can tear the last line only: each line is written after its run is on disk.
        complete = self._progress_path.read_bytes().split(b"\n")[:-1]
        try:
            description, *rows = map(json.loads, complete)
        except ValueError as error:
            raise UserError(
                f"{self._progress_path} cannot be read ({error}). Remove {self.path} and start "
                "again."
            ) from error
        self._check_same_rois(description["atlas"], description["roi_labels"])
        for row in rows:
            self._adopt(row)

    # --- writing --------------------------------------------------------------------------------

    def __enter__(self) -> "FolderWriter":
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._finished:
            self._open()
        return self

    def _open(self) -> None:
        """Open the data, beside a progress file that lists exactly the complete runs."""
        with replacing(self._progress_path) as progress:
            progress.write(_json_line({"atlas": self.atlas, "roi_labels": self.roi_labels}))
            progress.writelines(map(_json_line, self._rows))
            self._progress_end = progress.tell()
        self._committed, self._last_commit = len(self._rows), time.monotonic()
        # Left in place, these would describe other data than the file they stand beside.
        for name in (TABLE_FILE, DESCRIPTION_FILE, NORMALIZATION_FILE):
            (self.path / name).unlink(missing_ok=True)
        self._series_file = self._series_path.open("r+b" if self._series_path.exists() else "w+b")
        self._series_file.truncate(self._end)

    def add_run(
        self,
        series: np.ndarray,
        *,
        participant_id: str,
        tr: float,
        session: str = "01",
        run: str = "01",
        split: str = "train",
        **phenotypes: Any,
    ) -> list[str]:
        """Append one run.

        Args:
            series: ``[R, T]`` real numbers, rows in the order of ``roi_labels``; at least two
                frames.
            participant_id, session, run: together the name of the run, unique in the folder.
            tr: repetition time in seconds.
            split: train, valid or test; one per person.
            phenotypes: more columns of participants.tsv; None and NaN are missing values. Runs may
                have different ones.

        Returns:
            Labels of the ROIs that are constant or hold NaN or Inf in this run. They are stored as
            zeros and listed in the run's ``bad_rois``.

        Raises:
            UserError: on any argument that does not fit; nothing is written then.
        """
        name = f"run {participant_id}/{session}/{run}"
        values, bad = check_series(name, series, self.roi_labels)
        row = {
            "participant_id": cell(f"{name}: participant_id", participant_id),
            "session": cell(f"{name}: session", session),
            "run": cell(f"{name}: run", run),
            "frames": str(values.shape[1]),
            "tr": str(check_tr(name, tr)),
            "split": check_split(name, split),
            "bad_rois": ";".join(bad) or MISSING,
        }
        key = (row["participant_id"], row["session"], row["run"])
        if MISSING in key:
            raise UserError(f"{name}: participant_id, session and run must all be given.")
        if key in self.written:
            raise UserError(f"{name} is in {self.path} already; each run can be written once.")
        if (other := self._split_of.get(key[0], split)) != split:
            raise UserError(
                f"{name}: split '{split}', but this person's other runs are in '{other}'. "
                "A person belongs to one split."
            )
        for column, value in phenotypes.items():
            if column in RUN_COLUMNS or cell(name, column) != column:
                raise UserError(f"{name}: '{column}' cannot be the name of a phenotype column.")
            row[column] = cell(f"{name}: {column}", value)

        if self._series_file is None:
            self._open()
        self._series_file.seek(self._end)  # not where the file stands: a write may have failed
        with naming(self._series_path):
            self._series_file.write(memoryview(values).cast("B"))
        self._adopt(row)
        if time.monotonic() - self._last_commit >= _COMMIT_SECONDS:
            self._commit()
        return bad

    def _commit(self) -> None:
        """Put the data on disk, then the lines that mark them as complete."""
        with naming(self._series_path):
            self._series_file.flush()
            os.fsync(self._series_file.fileno())
        with naming(self._progress_path), self._progress_path.open("r+b") as progress:
            progress.seek(self._progress_end)  # over what an earlier attempt on a full disk left
            progress.writelines(map(_json_line, self._rows[self._committed :]))
            progress.truncate()
            progress.flush()
            os.fsync(progress.fileno())
            self._progress_end = progress.tell()
        self._committed, self._last_commit = len(self._rows), time.monotonic()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._series_file is None:  # a finished folder to which nothing was added
            return
        with self._series_file:
            if self._rows:
                self._commit()
                if kind is None:
                    self._finish()
        if not self._rows:
            self._series_path.unlink()
            self._progress_path.unlink()
            if kind is None:
                raise UserError(f"No run was written to {self.path}: there is no data set to keep.")

    def _finish(self) -> None:
        self._series_file.seek(0)
        length = (self._end - _HEADER_BYTES) // _ITEM_BYTES
        np.lib.format.write_array_header_1_0(
            self._series_file, {"descr": "<f4", "fortran_order": False, "shape": (length,)}
        )
        if self._series_file.tell() != _HEADER_BYTES:
            raise RuntimeError(f"numpy wrote a header of {self._series_file.tell()} bytes")
        self._series_file.truncate(self._end)
        self._series_file.flush()
        os.fsync(self._series_file.fileno())

        columns = list(dict.fromkeys([*RUN_COLUMNS, *(name for row in self._rows for name in row)]))
        with replacing(self.path / TABLE_FILE) as table:
            table.write(("\t".join(columns) + "\n").encode())
            for row in self._rows:
                table.write(("\t".join(row.get(name, MISSING) for name in columns) + "\n").encode())
        description = {
            "format": FORMAT,
            "atlas": self.atlas,
            "n_rois": len(self.roi_labels),
            "roi_labels": self.roi_labels,
            "n_runs": len(self._rows),
            "n_participants": len(self._split_of),
            "run_order": run_order(pd.DataFrame(self._rows)),
            "provenance": self.provenance,
            "created_by": "Brain-JEPA, src.datasets.folder",
        }
        with replacing(self.path / DESCRIPTION_FILE) as file:
            file.write(json.dumps(description, indent=1, ensure_ascii=False).encode() + b"\n")
        self._progress_path.unlink()


def _json_line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"
