"""Who trains, who is scored, and a data-set folder for each fold.

Stage ``report`` scores test people: with one fold those of the data folder, with several everyone
once, by models that never saw them. Stage ``choose`` never sees the folder's test people: they are
``excluded`` from its folders, and what is called test there are the folder's validation people or,
with several folds, everyone else once.

A fold's folder holds the series by a link, ``participants.tsv`` with the split written anew, and
gradients of its own training people; robust statistics are made in it by the first run.
"""

import json
import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from downstream_tasks.cohort.examples import disjoint_groups
from downstream_tasks.cohort.families import FAMILY_KEY, family_columns
from scripts.ablation.experiment import DataSet, Experiment
from src.datasets.folder import DataFolder
from src.datasets.folder.format import (
    EXCLUDED,
    NORMALIZATION_FILE,
    TABLE_FILE,
)
from src.datasets.prepare.gradients import compute_gradients
from src.utils.errors import UserError
from src.utils.files import replacing, write_text

FOLD_FILE = "fold.json"
# Made from training people, so that each fold has its own.
_OF_TRAINING = (TABLE_FILE, NORMALIZATION_FILE, "gradients.csv", "gradients.json", FOLD_FILE)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fold:
    """The part of each person: train, valid, test or excluded."""

    number: int
    part_of: Mapping[str, str]
    group_of: Mapping[str, str]  # person -> family, named after its first person

    def people(self, part: str) -> list[str]:
        """The people of a part, sorted."""
        return sorted(person for person, own in self.part_of.items() if own == part)


def open_source(data: DataSet) -> DataFolder:
    """The data-set folder that folds are made of; a :class:`UserError` says how to make it."""
    if not Path(data.folder).exists() and data.make:
        made = [command.replace("{data_dir}", shlex.quote(data.folder)) for command in data.make]
        raise UserError(f"{data.folder} does not exist. Make it with: {' && '.join(made)}")
    return DataFolder(data.folder)


def make_folds(runs: pd.DataFrame, experiment: Experiment, where: str) -> list[Fold]:
    """Divide the people of ``participants.tsv``: a function of it and the experiment's seed.

    Raises:
        UserError: if there are fewer people (or families) than folds, or a part has no one.
    """
    runs = runs.sort_values("participant_id", kind="stable")  # groups are named after their first
    groups = disjoint_groups(runs, family_columns(list(runs.columns), (FAMILY_KEY,), where))
    group_of = dict(zip(runs["participant_id"], groups, strict=True))
    split_of = dict(zip(runs["participant_id"], runs["split"], strict=True))
    folds = []
    for number, part_of in enumerate(_parts(group_of, split_of, experiment, where)):
        fold = Fold(number, part_of, group_of)
        for part in ("train", "valid", "test"):
            if not fold.people(part):
                raise UserError(
                    f"{where}: fold {number} of {experiment.folds} has no {part} people. Take "
                    "another number of folds, or move people between the parts of the table."
                )
        folds.append(fold)
    return folds


def _parts(
    group_of: Mapping[str, str], split_of: Mapping[str, str], experiment: Experiment, where: str
) -> list[dict[str, str]]:
    """Person -> part, for each fold."""
    choosing, seed = experiment.stage == "choose", experiment.split_seed
    kept_back = {group_of[p] for p, split in split_of.items() if choosing and split == "test"}
    out = {p: EXCLUDED for p, s in split_of.items() if s == EXCLUDED or group_of[p] in kept_back}
    if choosing and not kept_back:
        logger.warning("%s: no test people to keep back while choosing", where)
    members: dict[str, list[str]] = {}
    for person in sorted(set(split_of) - set(out)):
        members.setdefault(group_of[person], []).append(person)

    if experiment.folds == 1:
        if not choosing:
            return [dict(split_of)]
        scored = [{group_of[p] for p, s in split_of.items() if s == "valid"} & set(members)]
    else:
        scored = _deal(members, experiment.folds, seed, where)
    parts = []
    for number, test in enumerate(scored):
        others = sorted(set(members) - test)
        wanted = experiment.valid * sum(len(members[group]) for group in others)
        valid, taken = set(), 0
        for group in np.random.default_rng([seed, number]).permutation(others).tolist():
            if taken >= max(1, round(wanted)):
                break
            valid.add(group)
            taken += len(members[group])
        part_of = dict(out)
        for group, own in members.items():
            part = "test" if group in test else "valid" if group in valid else "train"
            part_of |= dict.fromkeys(own, part)
        parts.append(part_of)
    return parts


def _deal(members: Mapping[str, list[str]], folds: int, seed: int, where: str) -> list[set[str]]:
    """Families to folds: in random order, the largest first, each to the smallest fold."""
    if len(members) < folds:
        raise UserError(f"{where}: {folds} folds of {len(members)} people (or families).")
    order = np.random.default_rng(seed).permutation(sorted(members)).tolist()
    order.sort(key=lambda group: -len(members[group]))  # stable: ties stay in random order
    dealt: list[set[str]] = [set() for _ in range(folds)]
    sizes = np.zeros(folds, dtype=int)
    for group in order:
        fold = int(sizes.argmin())
        dealt[fold].add(group)
        sizes[fold] += len(members[group])
    return dealt


def fold_folder(out: Path, data: DataSet, fold: int) -> Path:
    """The data-set folder of a fold."""
    return out / "data" / data.label / f"fold{fold}"


def write_fold(source: DataFolder, fold: Fold, path: Path, n_components: int | None) -> Path:
    """Make the folder of a fold, or check that ``path`` is it; its gradients too, if wanted.

    Raises:
        UserError: if ``path`` is the folder of another fold.
    """
    made = path / FOLD_FILE
    says = {"source": str(source.path.resolve()), "run_order": source.description["run_order"]}
    says |= {"parts": dict(sorted(fold.part_of.items()))}
    if made.exists():
        if json.loads(made.read_text()) != says:
            raise UserError(
                f"{path} is a fold of other data or other people than {source.path} gives now. "
                "Write elsewhere (--out), or remove the folder of the experiment."
            )
    else:
        path.mkdir(parents=True, exist_ok=True)
        for file in sorted(source.path.iterdir()):
            link = path / file.name
            if file.name not in _OF_TRAINING and file.is_file() and not link.is_symlink():
                link.symlink_to(file.resolve())
        _write_table(source.path / TABLE_FILE, path / TABLE_FILE, fold)
        write_text(made, json.dumps(says, indent=1))
    if n_components is not None and not (path / "gradients.json").exists():
        compute_gradients(DataFolder(path), n_components=n_components)
    return path


def _write_table(source: Path, target: Path, fold: Fold) -> None:
    """``participants.tsv`` as it is, cell by cell, but for the split."""
    header, *lines = source.read_text(encoding="utf-8").splitlines()
    columns = header.split("\t")
    person, split = columns.index("participant_id"), columns.index("split")
    with replacing(target) as file:
        file.write(f"{header}\n".encode())
        for line in lines:
            cells = line.split("\t")
            cells[split] = fold.part_of[cells[person]]
            file.write(("\t".join(cells) + "\n").encode())
