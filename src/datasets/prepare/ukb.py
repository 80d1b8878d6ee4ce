"""Import runs in the UK Biobank layout into a data-set folder.

    python -m src.datasets.prepare.ukb --root ROOT --ids ids.txt --out data/ukb --workers 8

The layout (method 7) is ``ROOT/time_series/ID/`` with a file for cortex and one for subcortex,
first column ``label_name``, one row per ROI, one column per frame. Subcortical rows come first
here. Stopped, it goes on where it was when started again. What cannot be read is listed in
refused.tsv.
"""

import argparse
import json
import os
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...utils.arguments import HelpFormatter
from ...utils.errors import PACKAGE, UserError, run_main
from ...utils.files import replacing
from ...utils.progress import progress_bar
from ..folder.writer import FolderWriter
from ..published_rois import PUBLISHED_ATLAS
from .participants import Assignment, read_ids

SUBCORTEX_FILE = "fMRI.Tian_Subcortex_S3_3T.csv.gz"
CORTEX_FILE = "fMRI.Schaefer17n400p.csv.gz"
REFUSED_FILE = "refused.tsv"
SETTINGS_FILE = "import.json"


# --- reading one person --------------------------------------------------------------------------


@dataclass
class Run:
    """One person's series, or the reason why there is none."""

    person: str  # participant id
    labels: tuple[str, ...] = ()
    series: np.ndarray | None = None  # [R, T] float32
    reason: str = ""


def read_run(root: Path, person: str) -> Run:
    """Read both files of a person; everything that can be wrong with them becomes ``reason``."""
    tables = []
    for name in (SUBCORTEX_FILE, CORTEX_FILE):
        path = root / "time_series" / person / name
        try:
            table = pd.read_csv(path)
            if table.columns[0] != "label_name":
                return Run(person, reason=f"{name}: first column is '{table.columns[0]}'")
            table = table.set_index("label_name").astype(np.float32)
        except FileNotFoundError:
            return Run(person, reason=f"{name}: no such file")
        # A cut or damaged gzip stream is EOFError, OSError or zlib.error; pandas' own errors and
        # text that is no number are ValueErrors.
        except (EOFError, OSError, zlib.error, ValueError) as error:
            return Run(person, reason=f"{name}: {str(error).strip() or type(error).__name__}")
        tables.append(table)
    if tables[0].shape[1] != tables[1].shape[1]:
        frames = " and ".join(str(table.shape[1]) for table in tables)
        return Run(person, reason=f"subcortex and cortex have {frames} frames")
    labels = tuple(str(label) for table in tables for label in table.index)
    return Run(person, labels, np.concatenate([table.to_numpy() for table in tables]))


def read_runs(root: Path, people: Sequence[str], workers: int) -> Iterator[Run]:
    """Yield the runs of ``people`` in their order, read by ``workers`` processes.

    Few runs are read ahead, so memory does not grow with their number.

    Raises:
        UserError: if a process dies.
    """
    with ProcessPoolExecutor(workers) as pool:
        waiting = deque()
        try:
            for person in people:
                waiting.append(pool.submit(read_run, root, person))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                "A reading process died, as when memory runs out. Start the import again with "
                "fewer --workers; it goes on where it was."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


# --- importing -----------------------------------------------------------------------------------


def import_ukb(
    root: Path,
    people: Sequence[str],
    out: Path,
    assignment: Assignment,
    *,
    tr: float = 0.735,
    workers: int = 1,
) -> list[tuple[str, str]]:
    """Import the runs of ``people``, those not in the folder yet.

    The labels of the first run that can be read are those of the data set; another run whose labels
    or order differ is refused.

    Returns:
        Refused runs as (person, reason), also written to refused.tsv.

    Raises:
        UserError: if nothing could be read, or the folder was begun with other settings.
    """
    settings = {"tr": tr, **assignment.settings}
    _check_settings(out, settings)
    refused: list[tuple[str, str]] = []
    try:
        todo = []
        for person in people:
            if assignment.table and person not in assignment.table:
                refused.append((person, "not in the participants table"))
            elif assignment.has_splits and pd.isna(assignment.table[person]["split"]):
                refused.append((person, "no split in the participants table"))
            else:
                todo.append(person)
        first = _first_readable(root, todo, refused)
        todo = todo[todo.index(first.person) :]
        provenance = {"source": f"UK Biobank layout, {root}", "settings": settings}
        with FolderWriter(
            out, roi_labels=first.labels, atlas=PUBLISHED_ATLAS, provenance=provenance, resume=True
        ) as writer:
            if not (out / SETTINGS_FILE).exists():
                with replacing(out / SETTINGS_FILE) as file:
                    file.write(json.dumps(settings).encode())
            todo = [person for person in todo if (person, "01", "01") not in writer.written]
            progress = progress_bar(read_runs(root, todo, workers), total=len(todo), unit="run")
            for run in progress:
                if reason := _add(writer, run, assignment.of(run.person), tr):
                    refused.append((run.person, reason))
                    progress.set_postfix(refused=len(refused))
    finally:
        _write_refused(out, refused)
    return refused


def _first_readable(root: Path, people: Iterable[str], refused: list[tuple[str, str]]) -> Run:
    for person in people:
        run = read_run(root, person)
        if not run.reason:
            return run
        refused.append((person, run.reason))
    example = f", the first: {refused[0][0]}: {refused[0][1]}" if refused else ""
    raise UserError(f"None of the runs under {root / 'time_series'} can be imported{example}.")


def _add(writer: FolderWriter, run: Run, columns: dict[str, Any], tr: float) -> str:
    """Write the run, or return why not."""
    if run.reason:
        return run.reason
    if run.labels != writer.roi_labels:
        pairs = enumerate(zip(run.labels, writer.roi_labels, strict=False), 1)
        row = next((f"row {i} is '{a}', expected '{b}'" for i, (a, b) in pairs if a != b), None)
        number = f"{len(run.labels)} ROIs, expected {len(writer.roi_labels)}"
        return f"labels differ from the first run's: {row or number}"
    try:
        writer.add_run(run.series, participant_id=run.person, tr=tr, **columns)
    except UserError as error:  # about this run, such as every ROI being constant
        return str(error)
    return ""


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    path = out / SETTINGS_FILE
    if path.exists() and (found := json.loads(path.read_text())) != settings:
        raise UserError(
            f"{out} was begun with {found}, now it is {settings}. Use the same, or another --out."
        )


def _write_refused(out: Path, refused: Iterable[tuple[str, str]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows = ((person, " ".join(reason.split())) for person, reason in refused)
    with replacing(out / REFUSED_FILE) as file:
        for row in chain([("participant_id", "reason")], rows):
            file.write("\t".join(row).encode() + b"\n")


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PACKAGE}.datasets.prepare.ukb",
        description="Import the UK Biobank layout. Start it again to go on after an interruption.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--root", type=Path, required=True, help="folder that holds time_series/")
    parser.add_argument(
        "--ids", type=Path, help="text file, one id per line (default: every folder in time_series)"
    )
    parser.add_argument("--out", type=Path, default=Path("data/ukb"), help="folder to write")
    parser.add_argument(
        "--participants", type=Path, help="TSV: participant_id, optional split, phenotypes"
    )
    parser.add_argument(
        "--valid", type=float, default=0.1, help="fraction, where no split is given"
    )
    parser.add_argument("--test", type=float, default=0.1, help="fraction, where no split is given")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--tr", type=float, default=0.735, help="repetition time, seconds")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="reading processes"
    )
    args = parser.parse_args()
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: one or more.")
    folder = args.root / "time_series"
    if not folder.is_dir():
        raise UserError(f"--root {args.root}: it holds no folder time_series.")
    people = (
        read_ids(args.ids) if args.ids else sorted(p.name for p in folder.iterdir() if p.is_dir())
    )
    assignment = Assignment.load(
        args.participants, valid=args.valid, test=args.test, seed=args.seed
    )
    refused = import_ukb(args.root, people, args.out, assignment, tr=args.tr, workers=args.workers)
    print(f"{args.out}: {len(people) - len(refused)} of {len(people)} runs, {len(refused)} refused")
    for person, reason in refused[:5]:
        print(f"    {person}: {reason}")
    if refused:
        print(f"Every refused run and its reason: {args.out / REFUSED_FILE}")


if __name__ == "__main__":
    run_main(main)
