"""Files of embeddings, written a batch at a time: .npz for arrays, .parquet, .csv, .tsv for tables.

A table has the columns of :data:`KEY_COLUMNS` and one column for each feature, so that

    pandas.read_parquet("embeddings.parquet")
    pandas.read_csv("embeddings.csv", dtype={"session": str, "run": str})

are ready for statistics. An .npz holds features of any shape, and can be mapped.
"""

import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from src.datasets.fmri import FMRIDataset
from src.utils.errors import UserError
from src.utils.files import replacing

KEY_COLUMNS = ("participant_id", "session", "run", "split", "clip")
ARRAY = "embeddings"
SUFFIXES = (".npz", ".parquet", ".csv", ".tsv")
# A parquet file describes every column in every row group: 100,000 columns take half a minute to
# write and do not open again in 8 GB.
MOST_PARQUET_COLUMNS = 20_000
_ROW_GROUP_VALUES = 4_000_000  # 16 MB are held before they are written


@dataclass(frozen=True)
class Embeddings:
    """What is written, before any of it is computed.

    Attributes:
        dataset: the clips, in the order of the rows.
        level: what is kept of the tokens, a name of :data:`pooling.LEVELS`.
        shape: of one clip's features.
        checkpoint: the file of the encoder.
    """

    dataset: FMRIDataset
    level: str
    shape: tuple[int, ...]
    checkpoint: Path

    def keys(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Who and what items ``first`` to ``last`` are."""
        items = np.arange(first, last)
        runs = self.dataset.folder.runs.iloc[self.dataset.rows[items // self.dataset.clips_per_run]]
        keys = {name: runs[name].to_numpy(str) for name in KEY_COLUMNS[:-1]}
        return keys | {"clip": (items % self.dataset.clips_per_run).astype(np.int32)}

    def feature_names(self) -> list[str]:
        """A name for each feature: ``f0012``, ``<ROI>_f012``, or ``<ROI>--<ROI>``.

        Raises:
            UserError: if single tokens are asked for, which no table can hold.
        """
        labels = self.dataset.folder.roi_labels
        if self.level == "token":
            raise UserError(
                f"--level token has {int(np.prod(self.shape))} values a clip, too many for the "
                "columns of a table. Write them to an .npz."
            )
        if self.level == "roi":
            digits = max(3, len(str(self.shape[1] - 1)))
            return [f"{label}_f{i:0{digits}d}" for label in labels for i in range(self.shape[1])]
        if self.level == "connectivity":
            return [f"{one}--{other}" for one, other in combinations(labels, 2)]
        n = int(np.prod(self.shape))
        return [f"f{i:0{max(4, len(str(n - 1)))}d}" for i in range(n)]


Batches = Iterator[np.ndarray]  # features of the next clips, float32 [B, ...]


def writer_of(path: Path, what: Embeddings) -> Callable[[Batches], None]:
    """The function that writes ``what`` to ``path``, by its suffix, one of ``SUFFIXES``.

    Raises:
        UserError: if such a file could not hold it.
    """
    if path.suffix == ".npz":
        return lambda batches: _write_npz(path, batches, what)
    names = what.feature_names()
    if path.suffix != ".parquet":
        separator = "," if path.suffix == ".csv" else "\t"
        return lambda batches: _write_text(path, batches, what, names, separator)
    if len(names) > MOST_PARQUET_COLUMNS:
        raise UserError(
            f"--level {what.level} would be {len(names)} columns; above {MOST_PARQUET_COLUMNS} a "
            "parquet file is slow to open or does not. Write an .npz (or a .csv)."
        )
    return lambda batches: _write_parquet(path, batches, what, names)


def _write_npz(path: Path, batches: Batches, what: Embeddings) -> None:
    """``embeddings`` ``[n, ...]``, the key columns, ``roi_labels`` and ``checkpoint``.

    The big array is written batch by batch and stored uncompressed, so that
    :func:`open_embeddings` can map it.
    """
    n = len(what.dataset)
    small = what.keys(0, n) | {
        "roi_labels": np.array(what.dataset.folder.roi_labels),
        "checkpoint": np.array(str(what.checkpoint)),
    }
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, values in small.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, values, allow_pickle=False)
        with archive.open(f"{ARRAY}.npy", "w", force_zip64=True) as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": (n, *what.shape)}
            np.lib.format.write_array_header_2_0(member, header)
            for batch in batches:
                member.write(np.ascontiguousarray(batch, dtype="<f4"))


def _write_text(
    path: Path, batches: Batches, what: Embeddings, names: list[str], separator: str
) -> None:
    """One line for each clip; numbers in the fewest digits that give the same float32."""
    first = 0
    with replacing(path) as file:
        for batch in batches:
            last = first + len(batch)
            keys = pd.DataFrame(what.keys(first, last))
            values = pd.DataFrame(batch.reshape(len(batch), -1), columns=names)
            table = pd.concat([keys, values], axis=1)
            text = table.to_csv(index=False, header=first == 0, sep=separator, lineterminator="\n")
            file.write(text.encode())
            first = last


def _write_parquet(path: Path, batches: Batches, what: Embeddings, names: list[str]) -> None:
    """Row groups of some megabytes; the metadata of the schema say level and checkpoint."""
    metadata = {"level": what.level, "checkpoint": str(what.checkpoint)}
    schema = pa.schema(
        [
            *((name, pa.string()) for name in KEY_COLUMNS[:-1]),
            ("clip", pa.int32()),
            *((name, pa.float32()) for name in names),
        ],
        metadata=metadata,
    )
    rows = max(1, _ROW_GROUP_VALUES // len(names))
    held = np.empty((len(names), rows), np.float32)  # a column of the table is contiguous
    first = last = 0
    with replacing(path) as file, pq.ParquetWriter(file, schema) as writer:

        def write_held() -> None:
            keys = [pa.array(column) for column in what.keys(first, last).values()]
            values = [pa.array(column[: last - first]) for column in held]
            writer.write_table(pa.Table.from_arrays([*keys, *values], schema=schema))

        for batch in batches:
            flat = batch.reshape(len(batch), -1)
            while len(flat):
                part, flat = np.split(flat, [rows - (last - first)])
                held[:, last - first : last - first + len(part)] = part.T
                last += len(part)
                if last - first == rows:
                    write_held()
                    first = last
            del flat, part, batch
        if last > first:
            write_held()


def open_embeddings(path: str | Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Embeddings of an .npz as a read-only memory map ``[n, ...]``, and its other arrays.

    ``numpy.load`` reads the same file, but would bring all of it into memory.

    Raises:
        UserError: if the file is not one that ``embed`` wrote.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            others = {name: arrays[name] for name in arrays.files if name != ARRAY}
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            # Stored as it is, so the array lies in the file behind two headers: the zip's (30 bytes
            # and two fields of the lengths named at byte 26) and its own.
            offset = archive.getinfo(f"{ARRAY}.npy").header_offset
            file.seek(offset + 26)
            file.seek(offset + 30 + sum(struct.unpack("<HH", file.read(4))))
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
            start = file.tell()
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} holds no embeddings of this project: {error}") from error
    return np.memmap(path, dtype, "r", start, shape), others
