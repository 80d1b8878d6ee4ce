"""Fit every method to the training people and score it on the test people."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from downstream_tasks.features.registry import MODEL_NAME, Kind
from downstream_tasks.signal.baselines import REGISTRY
from downstream_tasks.signal.clips import Batch
from downstream_tasks.signal.networks import FrozenNetworks
from downstream_tasks.signal.ridge import Choice, CrossSums
from downstream_tasks.signal.scores import Scores
from downstream_tasks.signal.task import Method, SignalTask
from src.models.vision_transformer import VisionTransformer, VisionTransformerPredictor

READOUTS = ("predictor", "encoder", "both")
UNTRAINED_NAME = "Untrained networks"

logger = logging.getLogger(__name__)


@dataclass
class Row:
    """A method and its scores.

    Attributes:
        name: stable, for tables that programs read: ``var``, ``model.predictor``,
            ``untrained.both``, ``var+model``, ``var+untrained``.
        head: what reads the signal off the features.
        r2_training: cross-validated over the training people.
    """

    name: str
    title: str
    head: str
    kind: Kind
    scores: Scores
    chosen: dict[str, Any] = field(default_factory=dict)
    r2_training: float = float("nan")


class Test(NamedTuple):
    """Clips of the test people, and how many people and ROIs there are."""

    clips: Iterable[Batch]
    people: int


def evaluate_baselines(
    task: SignalTask, test: Test, names: Sequence[str], protocol: str
) -> tuple[dict[str, Method], list[Row]]:
    """Fit the baselines ``names`` and score them."""
    methods: dict[str, Method] = {}
    for name in names:
        logger.info("%s: fitting %s", protocol, name)
        methods[name] = REGISTRY[name].fit(task)
    scores = {name: Scores.empty(test.people, task.grid[0]) for name in names}
    for batch in test.clips:
        for name, method in methods.items():
            scores[name].add(batch, method.predict(batch, None), task.roi_means)
    rows = [
        Row(
            name,
            REGISTRY[name].title(protocol),
            "ridge" if name not in ("mean", "persistence", "mlp") else "none",
            "baseline",
            scores[name],
            methods[name].chosen,
            methods[name].r2,
        )
        for name in names
    ]
    return methods, rows


def evaluate_model(
    task: SignalTask,
    test: Test,
    networks: tuple[VisionTransformer, VisionTransformerPredictor],
    stacked: dict[str, Method],
    protocol: str,
) -> list[Row]:
    """Rows of the checkpoint: its read-outs, its signal head, and baselines with it."""
    rows = _evaluate_networks(task, test, networks, stacked)
    for row in rows:
        _name(row, "model", (MODEL_NAME, MODEL_NAME), ("readout", "joint"), protocol)
    rows[0].kind = "model"
    return rows


def evaluate_untrained(
    task: SignalTask,
    test: Test,
    copies: Iterable[tuple[VisionTransformer, VisionTransformerPredictor]],
    stacked: dict[str, Method],
    protocol: str,
) -> list[Row]:
    """The same rows of untrained copies: of several, the mean of their sums of squares."""
    found = [_evaluate_networks(task, test, networks, stacked) for networks in copies]
    rows = []
    for of_copies in zip(*found, strict=True):
        row = of_copies[0]
        if row.name == "head":  # a head with random weights says nothing
            continue
        row.scores = Scores(np.mean([one.scores.sums for one in of_copies], axis=0))
        row.r2_training = float(np.mean([one.r2_training for one in of_copies]))
        titles = (UNTRAINED_NAME, UNTRAINED_NAME.lower())
        _name(row, "untrained", titles, ("baseline", "control"), protocol)
        rows.append(row)
    return rows


def _name(
    row: Row, networks: str, titles: tuple[str, str], kinds: tuple[Kind, Kind], protocol: str
) -> None:
    """Say whose features ``row`` reads: ``titles`` and ``kinds`` are for alone, and stacked."""
    base, plus, _ = row.name.partition("+")
    if plus:
        row.name = f"{base}+{networks}"
        row.title = f"{REGISTRY[base].title(protocol)} + {titles[1]}"
    else:
        row.name, row.title = f"{networks}.{row.name}", titles[0]
    row.kind = kinds[bool(plus)]


def _evaluate_networks(
    task: SignalTask,
    test: Test,
    networks: tuple[VisionTransformer, VisionTransformerPredictor],
    stacked: dict[str, Method],
) -> list[Row]:
    """Read-outs of the networks' features, and of these together with each stacked baseline.

    All come from one pass over the training clips: the input of the sums is what the baselines
    predict of people that they were not fitted to, then the features. A baseline's own prediction
    is what its stacked regression adds to, so that features that say nothing leave it as it is.
    """
    frozen, size = FrozenNetworks(*networks, task), task.patch_size
    of_predictor, of_encoder = frozen.sizes
    first = len(stacked) * size
    columns = {
        "predictor": np.arange(first, first + of_predictor),
        "encoder": np.arange(first + of_predictor, first + of_predictor + of_encoder),
        "both": np.arange(first, first + of_predictor + of_encoder),
    }
    sums = CrossSums(task.n_folds, task.grid[0], first + of_predictor + of_encoder, size)
    for batch in task.train:
        x, _ = _inputs(frozen, stacked, batch, batch.fold)
        kept, rois = batch.measured_of(x), batch.rois_of(x)
        sums.add(x[kept], batch.hidden[kept], rois[kept], batch.fold)
    fits = {name: sums.fit([Choice(name, columns[name])]) for name in READOUTS}
    for place, name in enumerate(stacked):
        own = np.arange(place * size, (place + 1) * size)
        choice = Choice(name, np.concatenate([own, columns["both"]]))
        fits[f"{name}+"] = sums.fit([choice], minus=own)
    scores = {name: Scores.empty(test.people, task.grid[0]) for name in (*fits, "head")}
    has_head = frozen.predictor.signal_head is not None
    for batch in test.clips:
        x, head = _inputs(frozen, stacked, batch, None)
        rois = batch.rois_of(x)
        for name, fit in fits.items():
            scores[name].add(batch, fit.full.predict(x, rois), task.roi_means)
        if has_head:
            scores["head"].add(batch, head, task.roi_means)
    rows = [
        Row(
            name,
            "",
            "both" if name.endswith("+") else name,
            "model",
            scores[name],
            {"strength": fit.strength},
            fit.r2,
        )
        for name, fit in fits.items()
    ]
    if has_head:
        rows.append(Row("head", "", "signal head", "model", scores["head"]))
    return rows


def _inputs(
    frozen: FrozenNetworks, stacked: dict[str, Method], batch: Batch, fold: int | None
) -> tuple[Tensor, Tensor | None]:
    """Baselines' predictions and features ``[B, H, K, .]``, and what the signal head says."""
    features = frozen(batch)
    predicted = [method.predict(batch, fold) for method in stacked.values()]
    return torch.cat([*predicted, features.predictor, features.encoder], -1), features.head
