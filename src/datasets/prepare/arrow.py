"""Import Arrow data sets of Brainmarks, the field's evaluation suite, into a data-set folder.

    python -m src.datasets.prepare.arrow --root aabc.schaefer400_tians3.arrow --out data/aabc \\
        --target sex=targets/aabc_target_map_sex.json

Brainmarks 0.1.1 keeps a folder of Arrow files (HuggingFace ``datasets``) per split. A row is one
run: ``sub``, ``tr`` in seconds, ``bold`` ``[T, R]`` normalised per ROI, ``mean`` and ``std``
``[1, R]`` to undo that, and whatever else the data set has. Labels of people are JSON files,
{sub: value}.

Order of ROIs: the files hold no names. Space ``schaefer400_tians3`` has the 50 subcortical ROIs
first and Schaefer's 17-network order after them (test_nisc.py of Brainmarks says so, and so does
the name of its parcellation file), which is our order: rows stay in place. With ``--roi_labels``
naming the columns in the order of the files, subcortical ROIs are moved to the front if they are
elsewhere.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ...utils.errors import PACKAGE, UserError, nearest, run_main
from ...utils.progress import progress_bar
from ..folder.format import RUN_COLUMNS, SPLITS
from ..folder.writer import FolderWriter
from ..published_rois import PUBLISHED_ATLAS, published_order
from .roi_labels import load_roi_labels

ATLASES = {"schaefer400_tians3": PUBLISHED_ATLAS}
SPLIT_OF = {"train": "train", "validation": "valid", "valid": "valid", "test": "test"}
_NEEDED = ("sub", "tr", "bold")
_SERIES = ("bold", "mean", "std")


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of an Arrow file, stream or file format, from a memory map.

    Raises:
        UserError: if it is not an Arrow file or is cut short.
    """
    try:
        with pa.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                reader = pa.ipc.open_file(source)
                yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                source.seek(0)
                yield from pa.ipc.open_stream(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is no Arrow file, or cut short: {error}") from error


def _matrix(value: pa.ListScalar) -> np.ndarray:
    """Return a list of lists as [rows, columns], without making Python numbers of it."""
    flat = value.values.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(value.values), -1)


def read_series(batch: pa.RecordBatch, row: int, where: str) -> np.ndarray:
    """Return the series ``[R, T]`` float32 of one row, in the units it had before normalisation.

    Raises:
        UserError: if ``bold`` is not ``[T, R]``, or mean and std do not fit it.
    """
    columns = {name: batch.column(name)[row] for name in _SERIES if name in batch.schema.names}
    try:
        matrices = {name: _matrix(value).astype(np.float32) for name, value in columns.items()}
        bold = matrices.pop("bold")
        if matrices:
            bold = bold * matrices["std"].reshape(1, -1) + matrices["mean"].reshape(1, -1)
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        shapes = {name: str(batch.schema.field(name).type) for name in columns}
        raise UserError(
            f"{where}: expected bold [T, R] with mean and std [1, R] or without both, found "
            f"{shapes} ({error})."
        ) from error
    return np.ascontiguousarray(bold.T)


def read_rows(path: Path) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yield (columns of single values, series ``[R, T]``) of every row, one at a time."""
    for batch in read_batches(path):
        plain = [f.name for f in batch.schema if f.name not in _SERIES and _is_plain(f.type)]
        for row, values in enumerate(batch.select(plain).to_pylist()):
            yield values, read_series(batch, row, f"{path}, row {row}")


def _is_plain(kind: pa.DataType) -> bool:
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind))


def load_targets(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read ``NAME=FILE`` pairs, each FILE a JSON object {sub: value}, into {name: {sub: value}}.

    Raises:
        UserError: on a pair or a file that is not of that form.
    """
    targets = {}
    for pair in pairs:
        name, _, file = pair.partition("=")
        if not (name and file) or name in RUN_COLUMNS:
            raise UserError(f"--target {pair}: expected NAME=FILE, NAME not a column of ours.")
        try:
            mapping = json.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"--target {pair}: {error}") from error
        if not isinstance(mapping, dict):
            raise UserError(f"--target {pair}: expected a JSON object of person and value.")
        targets[name] = mapping
    return targets


def find_files(root: Path, splits: Mapping[str, str]) -> tuple[list[tuple[str, Path]], list[str]]:
    """Return (split, file) of every Arrow file under ``root``, and folders that no split is for.

    Raises:
        UserError: if there is no Arrow file, or a split that is not one of ours.
    """
    if wrong := sorted(set(splits.values()) - set(SPLITS)):
        hint = nearest(wrong[0], SPLITS)
        raise UserError(f"--split: '{wrong[0]}' is not one of {', '.join(SPLITS)}.{hint}")
    folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    files = [
        (split, file)
        for name, split in splits.items()
        for file in sorted(root.glob(f"{name}/*.arrow"))
    ]
    if not files:
        names = ", ".join(p.name for p in folders) or "no folder"
        raise UserError(
            f"--root {root}: expected folders {', '.join(splits)} with .arrow files, found {names}."
        )
    return files, [p.name for p in folders if p.name not in splits and list(p.glob("*.arrow"))]


def import_arrow(
    root: Path,
    out: Path,
    *,
    targets: Mapping[str, Mapping[str, Any]] | None = None,
    splits: Mapping[str, str] = SPLIT_OF,
    roi_labels: Path | None = None,
) -> list[str]:
    """Write every run under ``root`` to a data-set folder, one at a time.

    A person's runs are numbered in the order of the files, per session (column ``ses`` if there is
    one). Other columns of single values become columns of participants.tsv.

    Args:
        targets: labels of people, {column: {sub: value}}.
        splits: name of a folder -> train, valid or test.
        roi_labels: names of the columns of ``bold``, see ``load_roi_labels``.

    Returns:
        Names of folders with Arrow files that were left out, as no split is given for them.

    Raises:
        UserError: on files that do not fit, or people that are in two splits.
    """
    targets = targets or {}
    files, left_out = find_files(root, splits)
    n_runs, n_rois = _survey(files)
    space = next((part for part in root.name.split(".") if part in ATLASES), root.name)
    atlas, labels = load_roi_labels(roi_labels, n_rois, ATLASES.get(space, space))
    order = published_order(labels)
    provenance = {"source": f"Arrow data set {root.name} in the format of Brainmarks 0.1.1"}
    numbers: Counter[tuple[str, str]] = Counter()
    with (
        FolderWriter(
            out, roi_labels=[labels[i] for i in order], atlas=atlas, provenance=provenance
        ) as writer,
        progress_bar(total=n_runs, unit="run") as progress,
    ):
        for split, file in files:
            for value, series in read_rows(file):
                person, session = str(value.pop("sub")), str(value.pop("ses", None) or "01")
                numbers[person, session] += 1
                writer.add_run(
                    series[order],
                    participant_id=person,
                    session=session,
                    run=f"{numbers[person, session]:02d}",
                    tr=round(value.pop("tr"), 5),  # float32 in the file
                    split=split,
                    **{name: people.get(person) for name, people in targets.items()},
                    **_phenotypes(value, targets),
                )
                progress.update()
    return left_out


def _survey(files: Sequence[tuple[str, Path]]) -> tuple[int, int]:
    """Return the number of runs and of ROIs; the first run of each batch is checked."""
    n_runs, n_rois = 0, None
    for _, file in files:
        for batch in read_batches(file):
            if missing := [name for name in _NEEDED if name not in batch.schema.names]:
                raise UserError(f"{file} has no column {', '.join(missing)}.")
            if batch.num_rows:
                found = len(read_series(batch, 0, f"{file}, row 0"))
                n_rois = found if n_rois is None else n_rois
                if found != n_rois:
                    raise UserError(f"{file} has {found} ROIs, {files[0][1]} has {n_rois}.")
                n_runs += batch.num_rows
    if n_rois is None:
        raise UserError(f"The Arrow files, the first {files[0][1]}, hold no run.")
    return n_runs, n_rois


def _phenotypes(value: Mapping[str, Any], targets: Mapping[str, Any]) -> dict[str, Any]:
    taken = {*RUN_COLUMNS, *targets}
    return {f"source_{name}" if name in taken else name: item for name, item in value.items()}


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PACKAGE}.datasets.prepare.arrow",
        description="Import an Arrow data set of Brainmarks (space schaefer400_tians3).",
    )
    parser.add_argument(
        "--root", type=Path, required=True, help="folder NAME.SPACE.arrow with one folder per split"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="JSON file {sub: value} to be column NAME; may be repeated",
    )
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="FOLDER=SPLIT",
        help="another folder to import, such as testid=test; may be repeated "
        "(train, validation and test need not be given)",
    )
    parser.add_argument(
        "--roi_labels",
        type=Path,
        help="data-set folder or text file to take ROI names from (default: ROI-001, ...)",
    )
    args = parser.parse_args()
    splits = dict(SPLIT_OF)
    for pair in args.split:
        folder, _, splits[folder] = pair.partition("=")
    left_out = import_arrow(
        args.root,
        args.out,
        targets=load_targets(args.target),
        splits=splits,
        roi_labels=args.roi_labels,
    )
    print(f"{args.out} is written.")
    for name in left_out:
        print(f"Left out: {args.root / name} (import it with --split {name}=train, valid or test)")


if __name__ == "__main__":
    run_main(main)
