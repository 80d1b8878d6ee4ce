"""People with two runs, and clips of these runs, for fingerprinting."""

import dataclasses

import numpy as np
import pandas as pd

from downstream_tasks.cohort.clips import ExampleClips
from downstream_tasks.cohort.examples import Cohort, disjoint_groups
from downstream_tasks.cohort.families import family_columns
from downstream_tasks.config import DownstreamConfig
from src.datasets.folder import DataFolder
from src.pretrained.encoder import Pretrained
from src.utils.errors import UserError


def paired_runs(folder: DataFolder, config: DownstreamConfig) -> Cohort:
    """The people with both runs: examples are their first runs, then their second ones.

    Raises:
        UserError: if fewer than two people have both, or someone has two runs of one kind.
    """
    column, (first, second) = config.fingerprint.column, config.fingerprint.pair
    keep = folder.rows(bad_rois="exclude" if config.data.bad_rois == "exclude" else "keep")
    runs = folder.runs.assign(row=np.arange(len(folder.runs))).loc[keep]
    if config.fingerprint.people == "test":
        runs = runs[runs["split"] == "test"]
    where = folder.path / "participants.tsv"
    parts = []
    for value in (first, second):
        part = runs[runs[column] == value].set_index("participant_id")
        if part.index.has_duplicates:
            twice = part.index[part.index.duplicated()][0]
            raise UserError(
                f"{where}: '{twice}' has several runs with {column} '{value}'; fingerprinting "
                "needs one. Tell them apart by fingerprint.column."
            )
        parts.append(part)
    people = sorted(set(parts[0].index) & set(parts[1].index))
    if len(people) < 2:
        raise UserError(
            f"{where}: {len(people)} people have runs with {column} '{first}' and '{second}'; "
            f"fingerprinting needs two or more. There are: {', '.join(sorted(set(runs[column])))}."
        )
    chosen = pd.concat([part.loc[people] for part in parts]).reset_index()
    disjoint = family_columns(list(chosen.columns), config.data.disjoint, str(where))
    groups = disjoint_groups(chosen, disjoint)
    incomplete = sorted((set(parts[0].index) | set(parts[1].index)) - set(people))
    examples = chosen[["row", "participant_id", "split"]].assign(
        start=-1, group=groups, unit=np.tile(np.arange(len(people)), 2)
    )
    units = chosen[["participant_id", "split"]].iloc[: len(people)]
    dropped = {"only one of the two runs": incomplete} if incomplete else {}
    return Cohort(examples, np.zeros(len(examples)), (), units, dropped)


def clips_apart(cohort: Cohort, config: DownstreamConfig, pretrained: Pretrained) -> Cohort:
    """``cohort`` with an example for each of the ``evaluation.clips`` clips of its runs.

    Raises:
        UserError: if a run is too short for so many different clips.
    """
    k = config.evaluation.clips
    clips = ExampleClips(cohort, config.data, pretrained, k)
    row_place = {row: i for i, row in enumerate(clips.dataset.rows.tolist())}
    starts = [
        clips.dataset.even_starts(row_place[row], k) for row in cohort.examples["row"].tolist()
    ]
    if short := sum(len(of_run) < k for of_run in starts):
        raise UserError(
            f"evaluation.clips: {short} of {len(starts)} runs are too short for {k} different "
            f"clips; the shortest has room for {min(map(len, starts))}. Lower evaluation.clips."
        )
    examples = cohort.examples.loc[cohort.examples.index.repeat(k)].reset_index(drop=True)
    examples["start"] = np.concatenate(starts)
    return dataclasses.replace(cohort, examples=examples, y=np.zeros(len(examples)))
