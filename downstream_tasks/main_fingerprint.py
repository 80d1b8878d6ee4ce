"""Fingerprinting: which of all people is this, from another run of theirs?

Nothing is trained and no label is used. Features of the two runs, each z-scored over people (what
all have in common identifies no one, and a feature should not count for its unit), are correlated;
a person is identified if their own other run correlates most (Finn et al., 2015), forward from the
first run to the second and backward.
"""

import logging

import numpy as np
import pandas as pd
import torch

from downstream_tasks.cohort.clips import ExampleClips
from downstream_tasks.cohort.examples import Cohort, CohortSummary
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.evaluation import describe_checkpoint, load_model
from downstream_tasks.features.registry import REGISTRY, Kind
from downstream_tasks.features.table import Representations
from downstream_tasks.report.results import MethodResult, Results, RunResult
from downstream_tasks.report.rows import compare_with_fc, method_result
from downstream_tasks.report.write import write_results
from src.datasets.folder import DataFolder
from src.utils.errors import UserError
from src.utils.files import replacing
from src.utils.logging import git_revision

METRICS = ("identification", "forward", "backward")
_ROUNDING = 1e-6  # relative; what differs by less is the same number computed twice

logger = logging.getLogger(__name__)


def run_fingerprint(config: DownstreamConfig, device: torch.device) -> Results:
    """Evaluate the checkpoint and every baseline; write the result folder.

    Raises:
        UserError: on bad input, see :func:`paired_runs` and :func:`load_model`.
    """
    pretrained, folder = load_model(config)
    cohort = paired_runs(folder, config)
    n = len(cohort.units)
    pretrained.warn_about_clips(ExampleClips(cohort, config.data, pretrained).dataset)
    representations = Representations(config, cohort, pretrained, device)
    scored, predictions = [], []
    for name in ("model", *config.evaluation.readouts, *config.baselines):
        entry = REGISTRY[name]
        if entry.reads == "nothing":
            continue
        logger.info("fingerprint: %s", name)
        features = representations.features(name).astype(np.float64)
        forward, backward = identify(features[:n], features[n:])
        people, title = cohort.units["participant_id"].to_numpy(), entry.title
        hits = np.stack([forward == np.arange(n), backward == np.arange(n)], axis=1).astype(float)
        scored.append(
            _line(title, "correlation", entry.kind, name, hits, config.evaluation.n_bootstrap)
        )
        predictions.append(
            cohort.units.assign(method=title, forward=people[forward], backward=people[backward])
        )
    chance = np.full((n, 2), 1 / n)
    scored.append(
        _line("Chance", "none", "baseline", "chance", chance, config.evaluation.n_bootstrap)
    )
    results = Results(
        task=config.name,
        protocol="fingerprint",
        type="fingerprint",
        target="participant_id",
        unit="person",
        metrics=METRICS,
        main_metric="identification",
        cohort=CohortSummary(n, n, n, 2 * n, cohort.dropped_summary),
        rows=tuple(row for row, _ in scored),
        comparisons=compare_with_fc(scored, "identification"),
        checkpoint=describe_checkpoint(config, pretrained),
        revision=git_revision(),
    )
    folder_out = config.output_dir
    write_results(folder_out, results, config)
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
    incomplete = sorted((set(parts[0].index) | set(parts[1].index)) - set(people))
    examples = chosen[["row", "participant_id", "split"]].assign(
        start=-1, group=chosen["participant_id"], unit=np.tile(np.arange(len(people)), 2)
    )
    units = chosen[["participant_id", "split"]].iloc[: len(people)]
    dropped = {"only one of the two runs": incomplete} if incomplete else {}
    return Cohort(examples, np.zeros(len(examples)), (), units, dropped)


def identify(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match each person of ``first`` ``[n, F]`` to the nearest row of ``second``, and the reverse.

    Both results are ``[n]``; row i of the two inputs is the same person. Features are z-scored over
    the people of each run. Where none differs between people (by more than the rounding of float32)
    everyone is matched to row 0, so that one is identified, as by any constant guess.
    """

    def unit(features: np.ndarray) -> np.ndarray:
        sd, size = features.std(axis=0), np.abs(features).max(axis=0)
        centred = features - features.mean(axis=0)
        centred = np.divide(centred, sd, out=np.zeros_like(centred), where=sd > _ROUNDING * size)
        centred -= centred.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(centred, axis=1, keepdims=True)
        return np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)

    similarity = unit(first) @ unit(second).T
    return similarity.argmax(axis=1), similarity.argmax(axis=0)


def _line(
    title: str,
    head: str,
    kind: Kind,
    representation: str,
    hits: np.ndarray,
    n_resamples: int,
) -> tuple[MethodResult, dict[str, np.ndarray]]:
    """A row of the results and its bootstrap samples, from ``hits`` ``[n, 2]`` of each person."""
    columns = {"identification": hits.mean(axis=1), "forward": hits[:, 0], "backward": hits[:, 1]}
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(hits), np.full(len(hits), 1 / len(hits)), size=n_resamples)
    samples = {name: counts @ values / len(hits) for name, values in columns.items()}
    metrics = {name: float(values.mean()) for name, values in columns.items()}
    runs = [RunResult("all", metrics)]
    return method_result(title, head, kind, runs, samples, representation=representation), samples
