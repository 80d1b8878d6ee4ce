"""Fingerprinting: which of all people is this, from another run of theirs?

Nothing is trained and no label is used. The feature vectors of two runs are correlated (Pearson); a
person is identified if their own other run correlates most, forward from the first run to the
second and backward (Finn et al., 2015). A second row of each representation z-scores every feature
over the people first: what all have in common, and the unit of a feature, then count for nothing.
"""

import logging

import numpy as np
import pandas as pd
import torch

from downstream_tasks.cohort.examples import Cohort, CohortSummary, disjoint_groups
from downstream_tasks.cohort.families import family_columns
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.evaluation import describe_checkpoint, load_model, people_of_pretraining
from downstream_tasks.features.registry import REGISTRY
from downstream_tasks.features.table import Representations
from downstream_tasks.notes import qualify
from downstream_tasks.report.comparisons import compare_rows
from downstream_tasks.report.figures import draw_table
from downstream_tasks.report.folder import clear_results
from downstream_tasks.report.results import Results, RunResult
from downstream_tasks.report.rows import method_result
from downstream_tasks.report.write import write_results
from downstream_tasks.scoring.design import Design
from downstream_tasks.scoring.intervals import metrics_of, summarise
from downstream_tasks.scoring.weighted import ScoredRun
from src.datasets.folder import DataFolder
from src.utils.errors import UserError
from src.utils.files import replacing
from src.utils.logging import git_revision, setup_logging

METRICS = ("identification", "forward", "backward")
Z_SCORED = "correlation, z-scored over people"
DESIGN = Design("one_split", n_train=0, n_test=0)  # nothing is trained
_ROUNDING = 1e-6  # relative; what differs by less is the same number computed twice

logger = logging.getLogger(__name__)


def run(config: DownstreamConfig, device: torch.device, evaluate: bool = False) -> Results:
    """Evaluate the checkpoint and every baseline; write the result folder.

    Raises:
        UserError: on bad input, see :func:`paired_runs` and :func:`load_model`; with ``evaluate``.
    """
    setup_logging(config.output_dir)
    if evaluate:
        raise UserError("--eval: fingerprint stores nothing to score again; run it without.")
    pretrained, folder = load_model(config)
    cohort = paired_runs(folder, config)
    n = len(cohort.units)
    people = cohort.units["participant_id"].to_numpy(str)
    seen = people_of_pretraining(pretrained, set(people))
    notes, settings = qualify(config, pretrained, folder, cohort, people, seen)
    clear_results(config.output_dir)
    representations = Representations(config, cohort, pretrained, device)
    rows, runs_of, predictions = [], {}, []
    for name in ("model", *config.evaluation.readouts, *config.baselines):
        entry = REGISTRY[name]
        if entry.reads == "nothing":
            continue
        logger.info("fingerprint: %s", name)
        features = representations.features(name).astype(np.float64)
        for head, prepared in (("correlation", features), (Z_SCORED, z_score(features, n))):
            forward, backward = identify(prepared[:n], prepared[n:])
            runs = score_hits(forward, backward, cohort.unit_groups)
            row = method_result(
                entry.title,
                head,
                entry.kind,
                [RunResult("all", {m: metrics_of(run)["accuracy"] for m, run in runs.items()})],
                {m: summarise([run], DESIGN)["accuracy"] for m, run in runs.items()},
                representation=name,
            )
            rows.append(row)
            runs_of[row.label] = [runs["identification"]]
            predictions.append(
                cohort.units.assign(
                    method=entry.title,
                    head=head,
                    group=cohort.unit_groups,
                    forward=people[forward],
                    backward=people[backward],
                )
            )
    by_chance = RunResult("all", dict.fromkeys(METRICS, 1 / n))
    nothing = dict.fromkeys(METRICS, (np.nan, np.nan))
    comparisons = compare_rows(
        rows,
        runs_of,
        "identification",
        DESIGN,
        n_exchanges=config.evaluation.n_exchanges,
        scored_as="accuracy",
    )
    rows.append(
        method_result("Chance", "none", "baseline", [by_chance], nothing, representation="chance")
    )
    results = Results(
        task=config.name,
        protocol="fingerprint",
        type="fingerprint",
        target="participant_id",
        unit="person",
        metrics=METRICS,
        main_metric="identification",
        cohort=CohortSummary(n, len(set(cohort.unit_groups)), n, 2 * n, cohort.dropped_summary),
        rows=tuple(rows),
        comparisons=comparisons,
        checkpoint=describe_checkpoint(config, pretrained, None if seen is None else len(seen)),
        notes=notes,
        settings=settings,
        revision=git_revision(),
    )
    folder_out = config.output_dir
    write_results(folder_out, results, config)
    draw_table(folder_out, results)
    with replacing(folder_out / "predictions.tsv") as file:
        pd.concat(predictions).to_csv(file, sep="\t", index=False, na_rep="n/a")
    return results


def paired_runs(folder: DataFolder, config: DownstreamConfig) -> Cohort:
    """The people with both runs: examples are their first runs, then their second ones.

    Raises:
        UserError: if fewer than two people have both, or someone has two runs of one kind.
    """
    column, (first, second) = config.fingerprint.column, config.fingerprint.pair
    keep = folder.rows(bad_rois="exclude" if config.data.bad_rois == "exclude" else "keep")
    runs = folder.runs.assign(row=np.arange(len(folder.runs))).loc[keep]
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


def identify(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match each person of ``first`` ``[n, F]`` to the most correlated row of ``second``, and back.

    Both results are ``[n]``; row i of the two inputs is the same person. Where the vectors of all
    people are one (but for the rounding of float32) everyone is matched to row 0, so that one is
    identified, as by any constant guess.
    """
    both = np.concatenate([first, second])
    if (np.ptp(both, axis=0) <= _ROUNDING * np.abs(both).max(axis=0)).all():
        return np.zeros(len(first), dtype=int), np.zeros(len(first), dtype=int)

    def unit(features: np.ndarray) -> np.ndarray:
        centred = features - features.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(centred, axis=1, keepdims=True)
        return np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)

    similarity = unit(first) @ unit(second).T
    return similarity.argmax(axis=1), similarity.argmax(axis=0)


def z_score(features: np.ndarray, n: int) -> np.ndarray:
    """Each feature z-scored over the people of each run; the first ``n`` rows are the first runs.

    A feature in which no one differs (by more than the rounding of float32) becomes 0.
    """
    parts = []
    for part in (features[:n], features[n:]):
        sd, size = part.std(axis=0), np.abs(part).max(axis=0)
        centred = part - part.mean(axis=0)
        parts.append(
            np.divide(centred, sd, out=np.zeros_like(centred), where=sd > _ROUNDING * size)
        )
    return np.concatenate(parts)


def score_hits(
    forward: np.ndarray, backward: np.ndarray, clusters: np.ndarray
) -> dict[str, ScoredRun]:
    """Who was identified, as predictions whose accuracy is the rate: both ways, and either alone.

    ``forward`` and ``backward`` ``[n]`` are whom each person was matched to.
    """
    n = len(forward)
    hits = {
        "identification": np.r_[forward, backward] == np.tile(np.arange(n), 2),
        "forward": forward == np.arange(n),
        "backward": backward == np.arange(n),
    }
    return {
        name: ScoredRun(
            np.zeros(len(hit), dtype=int),
            np.stack([hit, ~hit], axis=1).astype(float),
            np.tile(clusters, len(hit) // n),
        )
        for name, hit in hits.items()
    }
