"""Imputation and forecast: what do the networks know of signal that is hidden from them?

Half of the ROIs are hidden at all times, or the last frames of all ROIs; a linear read-out of the
features at the hidden tokens is fitted to training people and scored on test people, beside raw
baselines, untrained copies, and baselines with the features stacked on them (method 10, 11.5).
What the lab and other programs read is ``people.csv`` (:mod:`downstream_tasks.signal.tables`).
"""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import torch

from downstream_tasks.cohort.clips import task_clip_input, with_split_statistics
from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.runs import RunSplit, make_splits, save_splits
from downstream_tasks.cohort.splits import Split, inner_folds
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.evaluation import describe_checkpoint, load_model, people_of_pretraining
from downstream_tasks.notes import qualify
from downstream_tasks.report.figures import draw_table
from downstream_tasks.report.folder import clear_results
from downstream_tasks.report.results import MethodResult, Results, RunResult
from downstream_tasks.report.signal import VARIANTS
from downstream_tasks.report.write import write_results
from downstream_tasks.scoring.people import mean_interval
from downstream_tasks.signal.atlas import (
    hemispheres,
    needed_networks,
    network_names,
    roi_features,
)
from downstream_tasks.signal.baselines import names_in
from downstream_tasks.signal.clips import PeopleClips, people_of_folder
from downstream_tasks.signal.comparisons import compare_signal
from downstream_tasks.signal.evaluate import (
    Row,
    Test,
    evaluate_baselines,
    evaluate_model,
    evaluate_untrained,
)
from downstream_tasks.signal.hiding import (
    Hiding,
    forecast_hiding,
    hemisphere_hidings,
    network_hidings,
    random_hidings,
)
from downstream_tasks.signal.notes import filter_notes, normalization_notes, signal_settings
from downstream_tasks.signal.scores import Scores
from downstream_tasks.signal.tables import write_tables
from downstream_tasks.signal.task import SignalTask
from src.datasets.folder import DataFolder
from src.pretrained.encoder import Pretrained
from src.utils.errors import UserError
from src.utils.logging import git_revision, setup_logging

METRICS = ("r2", "pearson")

logger = logging.getLogger(__name__)


def run(config: DownstreamConfig, device: torch.device, evaluate: bool = False) -> Results:
    """Evaluate the checkpoint and every baseline; write the result folder.

    Raises:
        UserError: on bad input; on a checkpoint without predictor; with ``evaluate``.
    """
    setup_logging(config.output_dir)
    if evaluate:
        raise UserError(f"--eval: {config.protocol} stores nothing to score again; run without it.")
    pretrained, folder = load_model(config, with_predictor=True)
    hidings = choose_hidings(config, pretrained, folder)
    features = roi_features(pretrained, config.data.gradient_csv_path, config.data.data_path)
    variants = input_variants(config, pretrained)
    cohort = people_of_folder(folder, config.data, task_clip_input(config.data, pretrained))
    names = config.signal.baselines or names_in(config.protocol)
    splits = make_splits(cohort, config.split, config.seeds, validation="mlp" in names)
    if not (config.split.in_folds or config.split.resample):
        splits = splits[:1]  # nothing that another seed would draw is different
    tested = np.unique(np.concatenate([_people(cohort, run.split.test) for run in splits]))
    ids = cohort.units["participant_id"].to_numpy(str)
    seen = people_of_pretraining(pretrained, set(ids[tested]))
    notes, settings = qualify(config, pretrained, folder, cohort, set(ids[tested]), seen)
    clear_results(config.output_dir)
    save_splits(config.output_dir, cohort, splits)
    shared = (cohort, pretrained, hidings, features)
    rows_of = {}
    for variant, of_variant in variants.items():
        found = []
        for split in splits:
            task, test = prepare_split(of_variant, *shared, split, device)
            found.append(_evaluate_split(of_variant, pretrained, task, test, split.seed))
        rows_of[variant] = _joined(found)
    without_noise = None
    if config.signal.noise and "ar" in names:
        first = next(iter(variants.values()))
        clean = dataclasses.replace(first, signal=dataclasses.replace(first.signal, noise=0.0))
        found = [prepare_split(clean, *shared, split, device) for split in splits]
        without_noise = _joined(
            [evaluate_baselines(*each, ("ar",), config.protocol)[1] for each in found]
        )[0]
    groups = cohort.unit_groups[tested]
    labelled = {v: [_result(row, v, tested, groups) for row in r] for v, r in rows_of.items()}
    ordered = [row for rows in labelled.values() for row in rows]
    labels = [[row.label for row in rows] for rows in labelled.values()]
    comparisons = compare_signal(list(rows_of.values()), labels, tested, groups)
    results = Results(
        task=config.name,
        protocol=config.protocol,
        type="signal",
        target="hidden signal",
        unit="person",
        metrics=METRICS,
        main_metric="r2",
        cohort=dataclasses.replace(
            cohort.summary(), n_units=len(tested), target_mean=None, target_sd=None
        ),
        rows=tuple(sorted(ordered, key=lambda row: row.kind != "model")),
        comparisons=comparisons,
        checkpoint=describe_checkpoint(config, pretrained, None if seen is None else len(seen)),
        notes=(
            *notes,
            *normalization_notes(variants, pretrained),
            *filter_notes(rows_of, without_noise, config.signal.noise),
        ),
        settings=signal_settings(config, settings, hidings),
        revision=git_revision(),
    )
    write_results(config.output_dir, results, config)
    networks = network_names(folder)
    write_tables(
        config.output_dir, config.protocol, rows_of, ids, tested, folder.roi_labels, networks
    )
    draw_table(config.output_dir, results)
    return results


def choose_hidings(
    config: DownstreamConfig, pretrained: Pretrained, folder: DataFolder
) -> list[Hiding]:
    """What is hidden, by the section ``signal``."""
    signal, spec = config.signal, pretrained.encoder_spec
    if config.protocol == "forecast":
        return forecast_hiding(spec.grid, spec.patch_size, signal.frames)
    where, seed = (spec.grid, spec.patch_size), config.evaluation.seed
    if signal.hidden == "random":
        return random_hidings(*where, signal.fraction, signal.draws, seed)
    if signal.hidden == "hemisphere":
        return hemisphere_hidings(*where, hemispheres(folder, pretrained))
    names = needed_networks(folder)
    return network_hidings(*where, names, signal.fraction, signal.draws, seed)


def input_variants(config: DownstreamConfig, pretrained: Pretrained) -> dict[str, DownstreamConfig]:
    """The task with each input of ``signal.global_signal``; the same input is not taken twice."""
    variants, taken = {}, set()
    for name in config.signal.global_signal:
        data = config.data
        if name != "as_trained":
            data = dataclasses.replace(data, global_signal=name)
        what = task_clip_input(data, pretrained).global_signal
        if what in taken:
            logger.info("signal.global_signal %s is an input that is evaluated already", name)
            continue
        taken.add(what)
        variants[name] = dataclasses.replace(config, data=data)
    return variants


def prepare_split(
    config: DownstreamConfig,
    cohort: Cohort,
    pretrained: Pretrained,
    hidings: Sequence[Hiding],
    features: np.ndarray,
    run: RunSplit,
    device: torch.device,
) -> tuple[SignalTask, Test]:
    """What is fitted to (training people, in folds), and the clips of the test people."""
    split, signal = run.split, config.signal
    pretrained = with_split_statistics(pretrained, config.data, cohort, split.train)
    fold_of, n_folds = _folds(cohort, split, signal.folds, run.seed)

    def clips(examples: np.ndarray, label: str, folds: np.ndarray | None = None) -> PeopleClips:
        return PeopleClips(
            cohort,
            config.data,
            pretrained,
            examples,
            hidings,
            clips=config.evaluation.clips,
            batch_size=config.evaluation.encoder_batch_size,
            noise=signal.noise,
            fold_of=folds,
            label=label,
        )

    valid = clips(split.valid, "validation clips") if len(split.valid) else ()
    train = clips(split.train, "training clips", fold_of)
    task = SignalTask(hidings, train, valid, n_folds, features, signal, device)
    return task, Test(clips(split.test, "test clips"), len(cohort.units))


def _evaluate_split(
    config: DownstreamConfig,
    pretrained: Pretrained,
    task: SignalTask,
    test: Test,
    seed: int,
) -> list[Row]:
    """The rows of one split; everything is fitted and chosen on its training people."""
    protocol, signal = config.protocol, config.signal
    names = signal.baselines or names_in(protocol)
    methods, rows = evaluate_baselines(task, test, names, protocol)
    stacked = {name: methods[name] for name in stacked_names(config)}
    logger.info("%s: reading out the checkpoint", protocol)
    networks = (pretrained.encoder, pretrained.predictor)
    of_model = evaluate_model(task, test, networks, stacked, protocol)
    logger.info("%s: reading out %d untrained copies", protocol, signal.untrained_seeds)
    seeds = range(seed, seed + signal.untrained_seeds)
    copies = (pretrained.untrained_networks(each) for each in seeds)
    untrained = evaluate_untrained(task, test, copies, stacked, protocol)
    return [*of_model, *rows, *untrained]


def stacked_names(config: DownstreamConfig) -> tuple[str, ...]:
    """Baselines that the features are stacked on."""
    if config.signal.stack is not None:
        return config.signal.stack
    learning = names_in(config.protocol, learning=True)
    names = config.signal.baselines or learning
    return tuple(name for name in names if name in learning and name != "kernel")


def _folds(cohort: Cohort, split: Split, wanted: int, seed: int) -> tuple[np.ndarray, int]:
    """Fold of each person, -1 for who is not in training, and the number of folds."""
    unit = cohort.examples["unit"].to_numpy()
    fold_of = np.full(len(cohort.units), -1)
    folds = inner_folds(cohort, split.train, wanted, seed)
    for fold, (_, members) in enumerate(folds):
        fold_of[unit[split.train[members]]] = fold
    return fold_of, len(folds)


def _people(cohort: Cohort, examples: np.ndarray) -> np.ndarray:
    return np.unique(cohort.examples["unit"].to_numpy()[examples])


def _joined(splits: Sequence[Sequence[Row]]) -> list[Row]:
    """The rows of all splits: each person's sums are those of the splits that tested them."""
    joined = []
    for of_splits in zip(*splits, strict=True):
        sums = sum(row.scores.sums for row in of_splits)
        r2 = float(np.mean([row.r2_training for row in of_splits]))
        first = of_splits[0]
        joined.append(dataclasses.replace(first, scores=Scores(sums), r2_training=r2))
    return joined


def _result(row: Row, variant: str, tested: np.ndarray, groups: np.ndarray) -> MethodResult:
    """The row of the table: means over people, with their intervals."""
    values = {"r2": row.scores.r2()[tested], "pearson": row.scores.r()[tested]}
    means = {name: mean_interval(value, groups) for name, value in values.items()}
    return MethodResult(
        row.title + VARIANTS[variant],
        row.head,
        row.kind,
        {name: mean for name, (mean, _) in means.items()},
        {name: float(np.std(value, ddof=1)) for name, value in values.items()},
        {name: interval for name, (_, interval) in means.items()},
        (RunResult("all", {name: mean for name, (mean, _) in means.items()}, row.chosen),),
        representation=row.name,
    )
