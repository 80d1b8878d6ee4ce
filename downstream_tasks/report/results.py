"""What ``results.json`` holds: one result per method, how they compare, what qualifies them.

The one place where it is written and read. JSON has no word for NaN: it is written as null, and a
null where a number belongs is read as NaN.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from downstream_tasks.cohort.examples import CohortSummary
from downstream_tasks.features.registry import Kind
from downstream_tasks.scoring.calibration import ReliabilityBin
from downstream_tasks.scoring.design import DesignKind
from src.utils.errors import UserError
from src.utils.files import replacing

RESULTS_FILE = "results.json"
RESULTS_FORMAT = 2

FC_NAME = "FC"


@dataclass(frozen=True)
class RunResult:
    """One run (a seed, a resampled split, a fold) of one method.

    Attributes:
        name: of the problem, such as ``seed0``.
        metrics: on the test people.
        chosen: hyper-parameters, and the epoch, picked without them.
        confusion: counts ``[C][C]``, rows are the true class; ``None`` for regression.
    """

    name: str
    metrics: dict[str, float]
    chosen: dict[str, Any] = field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class MethodResult:
    """A line of the table: a representation, a head, and how well it did.

    Attributes:
        kind: the model itself, a readout or a control of it, or a baseline.
        mean, sd: of each metric over the runs; the SD of one run is NaN.
        interval: 95 % interval of each metric.
        representation: its name in the registry of features, where it has one.
        notes: what qualifies it, such as a setting at the edge of its grid.
        trained_parameters: how many were fitted, where that is known.
        reliability: bins of the probabilities of all runs together; empty for regression.
        other_target: whether it predicts another target than the other rows (confounds removed
            from it), so that its scores do not compare with theirs.
        confounds_removed: from the features, or from the target.
    """

    name: str
    head: str
    kind: Kind
    mean: dict[str, float]
    sd: dict[str, float]
    interval: dict[str, tuple[float, float]]
    runs: tuple[RunResult, ...]
    representation: str = ""
    notes: tuple[str, ...] = ()
    trained_parameters: int | None = None
    reliability: tuple[ReliabilityBin, ...] = ()
    other_target: bool = False
    confounds_removed: bool = False

    @property
    def label(self) -> str:
        """Name and head, which tell the rows of a table apart."""
        return f"{self.name} ({self.head})"


@dataclass(frozen=True)
class Comparison:
    """The paired difference of two methods on the same test people: ``method`` - ``reference``.

    Both are labels of rows (:attr:`MethodResult.label`). ``p`` is NaN where no test fits the design
    of the runs; ``test`` names the one that was made. Where every person has a score of their own,
    ``p_adjusted`` is Holm's over all comparisons, and ``n_gain`` of ``n_people`` people gain.
    """

    method: str
    reference: str
    metric: str
    difference: float
    interval: tuple[float, float]
    p: float = math.nan
    test: str = ""
    p_adjusted: float = math.nan
    n_gain: int | None = None
    n_people: int | None = None


@dataclass(frozen=True)
class PermutationTest:
    """The score of a method among those of permuted labels (:mod:`studies.permutation`).

    Attributes:
        method: label of its row.
        observed: mean over runs, as the null is.
        null_mean, null_interval: mean and central 95 % of the scores of permuted labels.
        n_arrangements: different arrangements of the labels among those drawn.
        n_redrawn: arrangements drawn again because nothing could be fitted to them.
    """

    method: str
    metric: str
    observed: float
    p: float
    n_permutations: int
    null_mean: float
    null_interval: tuple[float, float]
    n_arrangements: int
    n_redrawn: int


@dataclass(frozen=True)
class CurvePoint:
    """Scores of a method with one number of training people (:mod:`studies.learning_curve`).

    Attributes:
        size: as in ``evaluation.train_sizes``.
        n_people: mean number of training people, whole families counted.
        mean, sd, interval: mean, SD and central 95 % of the draws of training people, over all
            runs. They say how much it matters who these are, for these test people.
    """

    name: str
    head: str
    size: float
    n_people: float
    n_draws: int
    mean: float
    sd: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class SplitSizes:
    """People in each part of one run."""

    name: str
    train: int
    valid: int
    test: int


@dataclass(frozen=True)
class CheckpointInfo:
    """Weights, training people and input of the evaluated checkpoint; ``None`` where not known.

    Attributes:
        kind: which sort of file it is.
        network: target_encoder or encoder.
        encoder: what it is built of (:class:`src.models.encoder_spec.EncoderSpec`).
        training_people: where those of a fine-tuned checkpoint are listed.
        test_people_in_pretraining: how many test people have an id of the pretraining's.
        cleaning: what follows the normalisation, :attr:`ClipInput.cleaning`.
    """

    path: str = "none"
    kind: str = ""
    network: str = ""
    model_name: str | None = None
    encoder: dict[str, Any] = field(default_factory=dict)
    atlas: str | None = None
    training_people: str | None = None
    test_people_in_pretraining: int | None = None
    normalization: str | None = None
    normalization_in_pretraining: str | None = None
    cleaning: dict[str, Any] | None = None
    cleaning_in_pretraining: dict[str, Any] | None = None
    sampling: dict[str, Any] | None = None
    sampling_in_pretraining: dict[str, Any] | None = None


@dataclass(frozen=True)
class Results:
    """Everything that an evaluation found.

    Attributes:
        type: classification, regression, survival, fingerprint, or signal (hidden values).
        unit: what gets one score: person, run or event.
        main_metric: selects settings, and is compared between methods.
        design: what the runs are to each other (:class:`scoring.design.Design`).
        revision: of the code.
        rows: the model first.
        comparisons: paired differences between rows.
        published: the paper's numbers for this task.
        notes: what qualifies the evaluation as a whole, such as input unlike the checkpoint's.
        permutations: tests of rows against permuted labels, if they were made.
        learning_curve: scores in ``main_metric`` over the number of training people, likewise.
        settings: what was done, by name: normalisation, what was done to time, class weights.
        target_unit: of the target, for figures; empty if it has none.
    """

    task: str
    protocol: str
    type: Literal["classification", "regression", "survival", "fingerprint", "signal"]
    target: str
    unit: str
    metrics: tuple[str, ...]
    main_metric: str
    cohort: CohortSummary
    rows: tuple[MethodResult, ...]
    classes: tuple[str, ...] = ()
    splits: tuple[SplitSizes, ...] = ()
    design: DesignKind = "one_split"
    checkpoint: CheckpointInfo = field(default_factory=CheckpointInfo)
    comparisons: tuple[Comparison, ...] = ()
    published: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    permutations: tuple[PermutationTest, ...] = ()
    learning_curve: tuple[CurvePoint, ...] = ()
    revision: str = ""
    target_unit: str = ""
    format: int = RESULTS_FORMAT

    @property
    def model(self) -> MethodResult | None:
        """The row of the model."""
        return next((row for row in self.rows if row.kind == "model"), None)

    @property
    def fc(self) -> MethodResult | None:
        """The row of functional connectivity with the head that others report (Brainmarks)."""
        return next((row for row in self.rows if row.name == FC_NAME), None)

    @property
    def all_notes(self) -> list[str]:
        """The notes on the whole, then those on rows; what holds for several rows is said once."""
        labels: dict[str, list[str]] = {}
        for row in self.rows:
            for note in row.notes:
                labels.setdefault(note, []).append(row.label)
        return [*self.notes, *(f"{'; '.join(rows)}: {note}" for note, rows in labels.items())]

    def comparison(
        self, method: MethodResult | None, reference: MethodResult | None
    ) -> Comparison | None:
        """How the two rows compare, if that was computed."""
        if method is None or reference is None:
            return None
        both = (method.label, reference.label)
        return next((c for c in self.comparisons if (c.method, c.reference) == both), None)

    def write(self, path: Path) -> None:
        """Write ``results.json``."""
        with replacing(path) as file:
            file.write(json.dumps(without_nan(dataclasses.asdict(self)), indent=1).encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> "Results":
        """The inverse of :meth:`write`.

        Raises:
            UserError: if the file is not JSON, or not what this version of the project writes.
        """
        try:
            values = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}") from error
        if not isinstance(values, dict) or values.get("format") != RESULTS_FORMAT:
            found = values.get("format") if isinstance(values, dict) else None
            raise UserError(
                f"{path}: 'format' is {found}, this version reads {RESULTS_FORMAT}; another "
                "program or version wrote it. Run the evaluation again."
            )
        return _build(cls, values, str(path))


def without_nan(value: Any) -> Any:
    """The same with NaN and infinity as null, which JSON has no words for."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _build(hint: Any, value: Any, where: str) -> Any:
    """``value`` of a JSON file as its type hint says; ``where`` names it in messages."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (value is None and type(None) in args):
        return value
    if origin is types.UnionType:
        return _build(next(arg for arg in args if arg is not type(None)), value, where)
    if hint is float and (value is None or type(value) in (int, float)):
        return math.nan if value is None else float(value)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        hints = typing.get_type_hints(hint)
        needed = {
            f.name
            for f in dataclasses.fields(hint)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        if wrong := sorted((value.keys() - hints.keys()) | (needed - value.keys())):
            raise UserError(f"{where}: '{wrong[0]}' is missing or not known to this version.")
        return hint(**{k: _build(hints[k], v, f"{where}: {k}") for k, v in value.items()})
    if origin is dict and isinstance(value, dict):
        return {key: _build(args[1], item, f"{where}: {key}") for key, item in value.items()}
    if origin is tuple and isinstance(value, list):
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(inner) == len(value):
            return tuple(_build(h, item, where) for h, item in zip(inner, value, strict=True))
    if origin is Literal and value in args:
        return value
    if origin is None and type(value) is hint:
        return value
    raise UserError(f"{where}: {value!r:.60} is not what this version writes there.")
