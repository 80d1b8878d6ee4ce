"""Fingerprinting: which of all people is this, from another run of theirs?

Nothing is trained and no label is used. The feature vectors of two runs are correlated (Pearson); a
person is identified if their own other run correlates most, forward from the first run to the
second and backward (Finn et al., 2015). How often a pair of runs of one person is more alike than a
pair of two is a finer score (:mod:`scoring.pairs`). A second row of each representation z-scores
every feature over the people first: what all have in common, and the unit of a feature, then count
for nothing.

With ``fingerprint.clips: apart`` a run is known by one short clip; the scores are means over all
pairs of a clip of the first run and a clip of the second.
"""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from downstream_tasks.cohort.examples import CohortSummary
from downstream_tasks.cohort.paired_runs import clips_apart, paired_runs
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.evaluation import describe_checkpoint, load_model, people_of_pretraining
from downstream_tasks.features.registry import REGISTRY, Representation
from downstream_tasks.features.table import Representations
from downstream_tasks.notes import qualify
from downstream_tasks.report.comparisons import compare_labels, compare_rows
from downstream_tasks.report.figures import draw_table
from downstream_tasks.report.folder import clear_results
from downstream_tasks.report.results import MethodResult, Results, RunResult
from downstream_tasks.report.rows import method_result
from downstream_tasks.report.write import write_results
from downstream_tasks.scoring.design import Design
from downstream_tasks.scoring.fingerprint import matched, score_hits, similarities, z_score
from downstream_tasks.scoring.intervals import metrics_of, summarise
from downstream_tasks.scoring.pairs import PairScores, compare_pairs, score_pairs, score_people
from downstream_tasks.scoring.weighted import ScoredRun
from src.utils.errors import UserError
from src.utils.files import replacing
from src.utils.logging import git_revision, setup_logging

METRICS = ("identification", "same_person_auc", "forward", "backward")
Z_SCORED = "correlation, z-scored over people"
PEOPLE_FILE = "people.csv"
DESIGN = Design("one_split", n_train=0, n_test=0)  # nothing is trained

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
    apart = config.fingerprint.clips == "apart"
    shown = clips_apart(cohort, config, pretrained) if apart else cohort
    k = config.evaluation.clips if apart else 1
    networks = [
        Representations(with_seed(config, seed), shown, pretrained, device)
        for seed in range(config.fingerprint.untrained_seeds)
    ]
    rows, runs_of, pairs_of, predictions, of_people = [], {}, {}, [], []
    for name in ("model", *config.evaluation.readouts, *config.baselines):
        entry = REGISTRY[name]
        if entry.reads == "nothing":
            continue
        logger.info("fingerprint: %s", name)
        asked = networks if entry.untrained else networks[:1]
        features = [each.features(name).astype(np.float64) for each in asked]
        for head in ("correlation", Z_SCORED):
            prints = fingerprints_of(features, n, k, head == Z_SCORED)
            row, hits, pairs = score_row(entry, head, prints, cohort.unit_groups)
            rows.append(row)
            runs_of[row.label], pairs_of[row.label] = hits, pairs
            of_people.append(people_table(name, head, prints, people))
            for place, similarity in prints:
                forward, backward = matched(similarity)
                predictions.append(
                    cohort.units.assign(
                        method=entry.title,
                        head=head,
                        **place,
                        group=cohort.unit_groups,
                        forward=people[forward],
                        backward=people[backward],
                    )
                )
    by_chance = RunResult("all", dict.fromkeys(METRICS, 1 / n) | {"same_person_auc": 0.5})
    nothing = dict.fromkeys(METRICS, (np.nan, np.nan))
    main_metric = config.fingerprint.metric
    if main_metric == "same_person_auc":
        comparisons = compare_labels(
            rows, main_metric, lambda a, b: compare_pairs(pairs_of[a], pairs_of[b])
        )
    else:
        most = max(map(len, runs_of.values()))  # each network of an untrained row: with the others
        comparisons = compare_rows(
            rows,
            {label: runs * (most // len(runs)) for label, runs in runs_of.items()},
            main_metric,
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
        main_metric=main_metric,
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
    with replacing(folder_out / PEOPLE_FILE) as file:
        pd.concat(of_people).to_csv(file, index=False, na_rep="n/a", float_format="%.6g")
    return results


def with_seed(config: DownstreamConfig, seed: int) -> DownstreamConfig:
    """The same, whose untrained encoder is another one."""
    evaluation = dataclasses.replace(config.evaluation, seed=config.evaluation.seed + seed)
    return dataclasses.replace(config, evaluation=evaluation)


Fingerprint = tuple[dict[str, int], np.ndarray]  # which clips (and network), how alike: [n, n]


def fingerprints_of(
    features: Sequence[np.ndarray], n: int, k: int, standardise: bool
) -> list[Fingerprint]:
    """Similarities ``[n, n]`` of all pairs of ``k`` clips, and which clips and network they are of.

    ``features`` of one network, or of several, are ``[2 n k, F]``: all first runs, then all second
    ones, the clips of a run one after another.
    """
    found = []
    for seed, of_seed in enumerate(features):
        clips = of_seed.reshape(2, n, k, -1)
        for i, j in np.ndindex(k, k):
            pair = np.concatenate([clips[0, :, i], clips[1, :, j]])
            prepared = z_score(pair, n) if standardise else pair
            place = {"clip": i, "other_clip": j} if k > 1 else {}
            place |= {"seed": seed} if len(features) > 1 else {}
            found.append((place, similarities(prepared[:n], prepared[n:])))
    return found


def score_row(
    entry: Representation,
    head: str,
    prints: Sequence[Fingerprint],
    clusters: np.ndarray,
) -> tuple[MethodResult, list[ScoredRun], PairScores]:
    """A row of the table, and what it is compared by: who was identified, and the pairs' scores."""
    hits: dict[str, list[ScoredRun]] = {}
    for _, similarity in prints:
        for name, run in score_hits(*matched(similarity), clusters).items():
            hits.setdefault(name, []).append(run)
    each = [score_pairs([similarity], clusters) for _, similarity in prints]
    together = PairScores(
        float(np.mean([one.auc for one in each])), np.mean([one.without for one in each], axis=0)
    )
    results = [
        RunResult(
            ", ".join(f"{key} {value}" for key, value in place.items()) or "all",
            {name: metrics_of(runs[i])["accuracy"] for name, runs in hits.items()}
            | {"same_person_auc": each[i].auc},
        )
        for i, (place, _) in enumerate(prints)
    ]
    intervals = {name: summarise(runs, DESIGN)["accuracy"] for name, runs in hits.items()}
    intervals["same_person_auc"] = together.interval()
    row = method_result(
        entry.title, head, entry.kind, results, intervals, representation=entry.name
    )
    return row, hits["identification"], together


def people_table(
    name: str, head: str, prints: Sequence[Fingerprint], people: np.ndarray
) -> pd.DataFrame:
    """Scores of each person by a representation, as ``people.csv`` has them.

    ``variant`` is correlation or z_scored (over people, first). ``identification`` is of both ways,
    ``person_auc`` that of :func:`score_people`; both are means over clips and networks.
    """
    similarity = [each for _, each in prints]
    own = np.arange(len(people))
    hits = [way == own for each in similarity for way in matched(each)]
    return pd.DataFrame(
        {
            "protocol": "fingerprint",
            "variant": "z_scored" if head == Z_SCORED else "correlation",
            "method": name,
            "participant_id": people,
            "identification": np.mean(hits, axis=0),
            "person_auc": score_people(similarity),
        }
    )
