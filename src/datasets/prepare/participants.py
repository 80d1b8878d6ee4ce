"""Participants to import: their ids, and the split and phenotypes of each."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ...utils.errors import UserError, nearest
from ..folder.format import RUN_COLUMNS, SPLITS
from .splits import split_by_hash


def read_ids(path: Path) -> list[str]:
    """Return participant ids from a text file: one per line, "#" starts a comment.

    Raises:
        UserError: on a pickle or another binary file, an id listed twice, or no id at all.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"--ids {path}: {error.strerror}.") from error
    # A pickle starts with byte 0x80 (protocol 2 and later) and always ends with its STOP, a dot.
    pickled = content[:1] == b"\x80" or content[-1:] == b"."
    if pickled or b"\0" in content or path.suffix in (".pkl", ".pickle", ".npy", ".pt"):
        raise UserError(
            f"--ids {path} is a pickle or another binary file. Loading a pickle can run any code, "
            "so it is not done here: write the ids to a text file, one per line."
        )
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"--ids {path} is not a text file: {error}") from error
    number: dict[str, int] = {}
    for i, line in enumerate(lines, 1):
        if not (person := line.partition("#")[0].strip()):
            continue
        if len(person.split()) > 1 or "/" in person or person in (".", ".."):
            raise UserError(
                f"--ids {path}, line {i}: '{person}' is not one id; write one per line."
            )
        if person in number:
            raise UserError(f"--ids {path}: '{person}' is in lines {number[person]} and {i}.")
        number[person] = i
    if not number:
        raise UserError(f"--ids {path} holds no id; expected one per line.")
    return list(number)


@dataclass(frozen=True)
class Assignment:
    """Split and phenotypes of each person: from a table, or the split from a hash of the id."""

    valid: float = 0.1
    test: float = 0.1
    seed: int = 0
    table: dict[str, dict[str, Any]] = field(default_factory=dict)
    has_splits: bool = False

    @classmethod
    def load(cls, path: Path | None, *, valid: float, test: float, seed: int) -> "Assignment":
        """Read a participants table (TSV, column participant_id, optional split and phenotypes).

        Raises:
            UserError: on impossible fractions, or a table that does not fit.
        """
        if not (valid >= 0 and test >= 0 and valid + test < 1):
            raise UserError(
                f"--valid {valid} --test {test}: expected fractions from 0 that sum to below 1."
            )
        if path is None:
            return cls(valid, test, seed)
        try:
            frame = pd.read_csv(path, sep="\t", dtype=str, na_values=["n/a"])
        except (OSError, ValueError) as error:
            raise UserError(f"--participants {path}: {error}") from error
        if "participant_id" not in frame:
            hint = nearest("participant_id", frame.columns)
            raise UserError(f"--participants {path} has no tab-separated participant_id.{hint}")
        if taken := [name for name in RUN_COLUMNS[1:] if name in frame and name != "split"]:
            raise UserError(f"--participants {path}: rename column {', '.join(taken)}, it is ours.")
        if twice := frame["participant_id"][frame["participant_id"].duplicated()].tolist():
            raise UserError(f"--participants {path}: '{twice[0]}' has more than one row.")
        if "split" in frame and (wrong := sorted(set(frame["split"].dropna()) - set(SPLITS))):
            hint = nearest(wrong[0], SPLITS)
            raise UserError(
                f"--participants {path}: split '{wrong[0]}', expected {', '.join(SPLITS)}.{hint}"
            )
        table = frame.set_index("participant_id").to_dict("index")
        return cls(valid, test, seed, table, "split" in frame)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the split, for dataset.json and for the check when an import goes on."""
        if self.has_splits:
            return {"split": "column of the participants table"}
        return {"valid": self.valid, "test": self.test, "seed": self.seed}

    def of(self, person: str) -> dict[str, Any]:
        """Return split and phenotypes of a person; KeyError if they are not in the table."""
        row = dict(self.table[person]) if self.table else {}
        if not self.has_splits:
            row["split"] = split_by_hash(person, valid=self.valid, test=self.test, seed=self.seed)
        return row
