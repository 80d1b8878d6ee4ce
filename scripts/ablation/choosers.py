"""Whom an experiment scored when something was chosen by it: their scores are not free of that.

A person is known by their data and their id: the order of the runs of a data-set folder, which is
the same wherever the folder lies, and ``participant_id``.
"""

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from scripts.ablation.runs import TASK_DONE
from src.utils.errors import UserError

PEOPLE_FILE = "people.csv"

Key = tuple[str, str]


def keys_of(people: pd.DataFrame) -> set[Key]:
    """Of the lines of a table of people."""
    return set(zip(people["run_order"], people["participant_id"], strict=True))


def people_read(out: Path, chosen_by: Collection[str], scored: set[Key]) -> dict[str, set[Key]]:
    """Who of ``scored`` was scored in experiments of stage ``choose``: their names and people.

    These are the experiments beside the folder ``out``, and the folders ``chosen_by``.

    Raises:
        UserError: if one of ``chosen_by`` is no experiment.
    """
    beside = sorted(out.parent.glob(f"*/{PEOPLE_FILE}"))
    named = [Path(folder) / PEOPLE_FILE for folder in chosen_by]
    found = {}
    for path in dict.fromkeys([*beside, *named]):
        if not path.exists():
            raise UserError(f"chosen_by: {path.parent} is no experiment: it has no {path.name}.")
        people = pd.read_csv(path, dtype={"participant_id": str})
        people = people[(people["stage"] == "choose") & people["scored_in_fold"].notna()]
        read = scored & keys_of(people)
        if read and has_results(path.parent):
            found[path.parent.name] = read
    return found


def has_results(out: Path) -> bool:
    """Whether any run in this folder has been evaluated."""
    return any(out.glob(f"runs/*/*/evaluation/*/{TASK_DONE}"))
