"""A downstream task: every key of ``configs/downstream/*.yaml``, with defaults as in method 7.

A task file names a data folder, a target column and what it is; a section per protocol may change
its defaults. Later sources win: dataclass defaults, task file, ``--config`` file, flags.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from downstream_tasks.features.registry import REGISTRY
from src.datasets.normalization import GlobalSignal, Method
from src.utils.yaml_config import (
    NOT_EMPTY,
    Count,
    Grid,
    Limit,
    Natural,
    NonNegative,
    Positive,
    at_least,
    plain,
)

# YAML reads bare yes and no as true and false, which no table of people holds.
Labels = Annotated[
    tuple[Any, ...],
    Limit(
        "of text and numbers (yes and no in quotes, or YAML reads true and false)",
        lambda labels: all(type(label) in (str, int, float) for label in labels),
    ),
]
TrainSize = Annotated[
    float,
    Limit("shares up to 1.0 or numbers of people", lambda x: 0 < x <= 1 or x == int(x) > 1),
]
BelowOne = Annotated[float, Limit("from 0 to below 1", lambda x: 0 <= x < 1)]

Protocol = Literal[
    "fine_tune",
    "linear_probe",
    "attentive_probe",
    "logistic",
    "ridge",
    "cox",
    "knn",
    "fingerprint",
    "imputation",
    "forecast",
]
SIGNAL_PROTOCOLS = ("imputation", "forecast")


@dataclass
class DataConfig:
    """Which people and runs, with which labels, cut into which clips."""

    data_path: str = ""  # a data-set folder (src.datasets.folder)
    target: str = ""  # column of participants.tsv, or of events.tsv for unit: event
    target_unit: str = ""  # of a number, for figures: years
    beside: tuple[str, ...] = ()  # the other targets of a run of several (studies/targets.py)
    # survival: the risk of an event that not everyone was seen to have (data.time, data.event)
    type: Literal["classification", "regression", "survival"] = "classification"
    classes: Labels = ()  # labels in class order, the second is "positive"; empty: sorted
    time: str = ""  # column: from the scan to the event, or to the last visit without it
    event: str = ""  # column: whether the event was seen, 1 or 0
    horizon: Positive | None = None  # in the unit of time; target: event by then, or none
    nb_classes: Count | None = None  # their number, checked against the data
    ignore_labels: Labels = ()  # people with these labels are left out
    unit: Literal["person", "run", "event"] = "person"  # what gets one score
    runs: tuple[str, ...] = ()  # only these values of the column run; empty: all
    disjoint: tuple[str, ...] = ("family_id",)  # columns no value of which may be in two parts
    # Columns of participants.tsv whose linear effects are removed, in rows of their own; columns of
    # text are categorical, and so is C(column), for sites that have numbers.
    confounds: tuple[str, ...] = ()
    confounds_from: Literal["features", "target"] = "features"  # target: regression only
    harmonize: str | None = None  # column that names the site, whose effects ComBat takes out
    harmonize_keep: tuple[str, ...] = ()  # columns whose effects on features ComBat leaves there
    label_normalization: bool = True  # z-score regression targets on training people
    normalization: Literal["checkpoint", Method] = (
        "checkpoint"  # what pretraining used; zscore_sample if the file does not say
    )
    # What follows it: values are clamped to +-clip_sd (null: not), and the mean over ROIs of each
    # frame is removed or kept. checkpoint: as in pretraining.
    clip_sd: Positive | Literal["checkpoint"] | None = "checkpoint"
    global_signal: Literal["checkpoint", GlobalSignal] = "checkpoint"
    # Median and IQR of each ROI, for robust and robust_frames: normalization.npz of a data folder,
    # or an .npz of arrays median and iqr. Unset: the checkpoint's; where it holds none, those of
    # the training people of each split.
    statistics_file: str | None = None
    downsample: bool | None = None  # every third frame, or every one; unset: as in pretraining
    stride: Count | None = None  # or every n-th frame
    target_tr: Positive | None = None  # or resample every run to so many seconds
    short_runs: Literal["error", "pad", "skip"] = "error"
    bad_rois: Literal["exclude", "zero"] = "exclude"
    delay_seconds: float = 5.0  # unit: event; from the onset to the scored patch
    scored_patch: int = 0  # unit: event; place of the scored patch in the clip
    gradient_csv_path: str | None = None  # unset: from the checkpoint
    num_workers: Natural = 2


@dataclass
class SplitConfig:
    """Who is in train, validation and test."""

    # folder: its split column; random: drawn once, or for every seed (resample); cv: k-fold cross-
    # validation, new folds for every seed (evaluation.num_seed repeats); site: each left out once.
    source: Literal["folder", "random", "cv", "site"] = "random"
    folds: Annotated[int, at_least(2)] = 5  # source: cv
    site: str | None = None  # source: site; the column of participants.tsv
    file: str | None = None  # a split_seed*.tsv of an earlier run
    fractions: tuple[Positive, Positive, Positive] = (0.6, 0.2, 0.2)  # in folds: of the first two
    seed: Natural = 0
    resample: bool = False  # new people for every seed

    @property
    def in_folds(self) -> bool:
        """Whether test parts cover everyone once."""
        return self.source in ("cv", "site")


@dataclass
class ModelConfig:
    """The checkpoint. What it states need not be repeated here; a contradiction is an error."""

    load_path: str | None = None  # file, or folder of a pretraining run
    load_epoch: int | None = None  # with a folder: jepa-epN; unset: the latest
    network: Literal["target_encoder", "encoder"] = "target_encoder"
    model_name: str | None = None
    num_heads: int | None = None  # for files of a width that no named size has
    crop_size: tuple[int, int] | None = None
    patch_size: int | None = None
    pred_depth: int | None = None
    pred_emb_dim: int | None = None
    add_w: Literal["mapping", "origin", "anatomical"] | None = None
    attn_mode: Literal["normal", "sdpa", "flash_attn"] = "sdpa"


@dataclass
class FewShotConfig:
    """Training sets of few labelled events (cohort/few_shot.py)."""

    events: Natural = 0  # of every class, of each person; 0: everyone is labelled
    people: Count = 1  # training people that have labels
    draws: Annotated[int, at_least(2)] = 50  # of such people and events: the runs of the evaluation


@dataclass
class EvaluationConfig:
    """How a protocol is scored."""

    num_seed: Count = 5
    seed: Natural = 0  # of the first run
    clips: Count = 1  # evenly spread over a run, predictions averaged; 1 = the centre
    # What is read off the frozen encoder (a readout of features/registry.py): the mean of all
    # tokens, of each ROI's (roi), or their correlations between ROIs (connectivity).
    level: str = "pooled"
    readouts: tuple[str, ...] = ()  # rows for these readouts too, from the same pass
    metric: str | None = None  # chooses settings and is compared; unset: by task type
    n_exchanges: Count = 1999  # of the paired permutation test; all, if there are no more
    # In the loss of every head and of fine-tuning, and in the votes of nearest neighbours: none, as
    # published, or balanced, by which rare classes count as much as common ones.
    class_weights: Literal["none", "balanced"] = "none"
    baselines: tuple[str, ...] = (  # names of features/registry.py
        "majority",
        "fc",
        "fc_run",
        "roi_stats",
        "random_weights",
        "time_permuted_jointly",
        "time_permuted_per_roi",
        "phase_randomised",
        "held_constant",
    )
    # What baselines of runs (FC, ROI statistics) see: the frames of the clips that the model sees,
    # or all of the run. The row fc_run has all of it in any case.
    baseline_frames: Literal["clips", "run"] = "clips"
    # Other weights or other clips than the model's, of ``baselines``. same: through the protocol
    # that is run, so that fine_tune trains one network for each. frozen: features of the frozen
    # encoder and logistic or ridge regression, which costs a pass. none: left out.
    controls: Literal["same", "frozen", "none"] = "same"
    n_permutations: Natural = 0  # of the labels, everything fitted again; 0: no permutation test
    train_sizes: tuple[TrainSize, ...] = ()  # learning curve: 20 people, 0.5 or 1.0 of them
    train_draws: Count = 5  # nested sets of training people of these sizes
    few_shot: FewShotConfig = field(default_factory=FewShotConfig)
    # Of the baselines: these together with the model, with the same head as they have alone
    # (logistic or ridge regression). What does the model add to what FC knows?
    stack: tuple[str, ...] = ("fc",)
    encoder_batch_size: Count = 16  # clips per frozen forward pass
    bfloat16: bool = False  # in frozen forward passes, where the device has it


@dataclass
class FineTuneConfig:
    """End-to-end training (method 7)."""

    batch_size: Count = 16
    epochs: Count = 50
    blr: float = 1e-3  # x batch / 256
    lr: Positive | None = None  # the rate itself, in place of that
    min_lr: float = 1e-6
    warmup_epochs: NonNegative = 0.0
    weight_decay: float = 0.05
    layer_decay: Annotated[float, Limit("above 0, at most 1", lambda x: 0 < x <= 1)] = 0.75
    drop_path: BelowOne = 0.1
    smoothing: BelowOne = 0.0
    accumulation_steps: Count = 1
    clip_grad: float | None = None
    gradient_checkpointing: bool = False
    # Above 0: in place of the encoder, adapters of this rank in its attention are trained (LoRA, by
    # the package peft), and the head. What they add counts alpha / rank; unset: 1.
    lora_rank: Natural = 0
    lora_alpha: Positive | None = None
    use_bfloat16: bool = True

    @property
    def alpha(self) -> float:
        """Scale of the adapters: ``lora_alpha``, by default their rank."""
        return self.lora_rank if self.lora_alpha is None else self.lora_alpha


@dataclass
class LinearProbeConfig:
    """LARS on frozen pooled features: as published (method 8.14), or over a grid of settings."""

    recipe: Literal["published", "grid"] = "published"
    batch_size: Count = 64
    epochs: Count = 50
    blr: Positive = 0.01  # published recipe; x batch / 256
    lr: Positive | None = None  # published recipe; the rate itself, in place of that
    weight_decay: NonNegative = 0.0  # published recipe
    # recipe: grid; all combinations are trained in one pass and validation picks one
    grid_blr: Grid = (0.01, 1.0, 10.0, 100.0, 300.0)  # x batch / 256
    grid_weight_decay: Annotated[tuple[NonNegative, ...], NOT_EMPTY] = (0.0, 1e-4, 1e-2)
    min_lr: float = 0.0
    warmup_epochs: NonNegative = 0.0
    smoothing: BelowOne = 0.0


@dataclass
class AttentiveProbeConfig:
    """One learned query over all frozen tokens, AdamW."""

    batch_size: Count = 32
    epochs: Count = 20
    lr: Grid = (1e-4, 3e-4, 1e-3)  # all trained in one pass over the tokens
    weight_decay: float = 0.05
    warmup_epochs: NonNegative = 2.0
    num_heads: int | None = None  # unset: one head per 64 dimensions
    smoothing: BelowOne = 0.0


@dataclass
class HeadsConfig:
    """scikit-learn heads on feature tables: grids and how a value is picked from them."""

    # Of settings: by inner cross-validation over the training people, or on the validation people.
    # fixed: none, as the grid has one value; a penalty is then one per feature (C / F, alpha x F),
    # which is the same for features of any number F.
    selection: Literal["cv", "valid", "fixed"] = "cv"
    folds: Annotated[int, at_least(2)] = 5  # selection: cv
    C: Grid = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # strongest penalty first
    cox_alpha: Grid = (1e5, 1e4, 1e3, 1e2, 10.0, 1.0)  # Cox: beside a sum over events
    alpha: Grid = (1e8, 1e7, 1e6, 1e5, 1e4, 1e3, 1e2, 10.0, 1.0)
    n_neighbors: Annotated[tuple[Count, ...], NOT_EMPTY] = (20, 10, 5, 3, 1)
    max_components: Count = 2048  # wider features of larger cohorts are reduced to these


@dataclass
class FingerprintConfig:
    """Identify a person across two runs."""

    column: Literal["run", "session"] = "run"
    pair: tuple[str, str] = ("01", "02")
    people: Literal["all", "test"] = "all"  # with both runs; test: of the folder's split alone
    # Features of the evaluation.clips clips of a run are averaged; apart: each clip names its
    # person by itself, and what is averaged are the scores of all pairs of a clip and a clip of the
    # other run.
    clips: Literal["together", "apart"] = "together"
    # identification: whose other run is most like it; same_person_auc: how often a pair of runs of
    # one person is more alike than a pair of two.
    metric: Literal["identification", "same_person_auc"] = "identification"
    untrained_seeds: Count = 1  # networks whose scores the row of the untrained encoder averages


@dataclass
class SignalConfig:
    """What is hidden, and what its prediction is compared with (imputation, forecast)."""

    hidden: Literal["random", "networks", "hemisphere"] = "random"  # imputation: which ROIs
    fraction: Annotated[float, Limit("between 0 and 1", lambda x: 0 < x < 1)] = 0.5  # of the ROIs
    draws: Count = 3  # imputation: of random ROIs or networks; clips take turns
    frames: Count | None = None  # forecast: the last frames, whole patches; unset: one patch
    # SD of white noise that is added to all that is seen, for models and baselines alike, in units
    # of the normalised signal. Band-pass filtered series are nearly determined by their own past,
    # and a long autoregression continues them; a little noise leaves what is more than the filter.
    noise: NonNegative = 0.0
    folds: Annotated[int, at_least(2)] = 5  # of the training people, for every choice
    baselines: tuple[str, ...] | None = None  # of signal/baselines.py; unset: all of the protocol
    # Of these: those whose predictions the features are stacked on; unset: all that are fitted, but
    # for one kernel.
    stack: tuple[str, ...] | None = None
    untrained_seeds: Count = 3  # untrained copies, whose mean is the row
    # Input, of models and baselines alike: as the checkpoint takes it (or data.global_signal), and
    # with the global signal kept or removed. A section of the table for each.
    global_signal: Annotated[tuple[Literal["as_trained", "keep", "remove"], ...], NOT_EMPTY] = (
        "as_trained",
    )
    mlp_samples: Count = 100_000  # hidden patches of the training people that the MLP is trained on
    mlp_epochs: Count = 20  # at most, the learning rate falls to 0; validation people stop it


@dataclass
class PublishedConfig:
    """What the paper reports for this task (method 7), shown beside the results."""

    accuracy: float | None = None
    f1: float | None = None
    mse: float | None = None
    pearson: float | None = None


@dataclass
class DownstreamConfig:
    """A task, a protocol and a checkpoint."""

    name: str = "task"
    protocol: Protocol = "fine_tune"
    output_root: str = "output_dirs"
    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    fine_tune: FineTuneConfig = field(default_factory=FineTuneConfig)
    linear_probe: LinearProbeConfig = field(default_factory=LinearProbeConfig)
    attentive_probe: AttentiveProbeConfig = field(default_factory=AttentiveProbeConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    fingerprint: FingerprintConfig = field(default_factory=FingerprintConfig)
    signal: SignalConfig = field(default_factory=SignalConfig)
    published: PublishedConfig = field(default_factory=PublishedConfig)

    @property
    def metric(self) -> str:
        """The metric that chooses settings and is compared between rows."""
        default = {"regression": "mse", "survival": "c_index"}
        return self.evaluation.metric or default.get(self.data.type, "balanced_accuracy")

    @property
    def seeds(self) -> range:
        """Seeds of the runs; sites are left out in one way only, so that there is one repeat."""
        repeats = 1 if self.split.source == "site" else self.evaluation.num_seed
        return range(self.evaluation.seed, self.evaluation.seed + repeats)

    @property
    def needs_validation(self) -> bool:
        """Whether something is chosen on validation people: an epoch, or a setting of a head."""
        by_gradient = ("fine_tune", "linear_probe", "attentive_probe")
        return self.protocol in by_gradient or self.heads.selection == "valid"

    @property
    def grid(self) -> tuple[str, tuple[float, ...]]:
        """Setting of the protocol's scikit-learn head, and the values that it may have."""
        heads = self.heads
        grids = {
            "logistic": ("C", heads.C),
            "ridge": ("alpha", heads.alpha),
            "cox": ("alpha", heads.cox_alpha),
        }
        return grids.get(self.protocol, ("n_neighbors", heads.n_neighbors))

    @property
    def baselines(self) -> tuple[str, ...]:
        """``evaluation.baselines``, without controls where they are not wanted."""
        names, wanted = self.evaluation.baselines, self.evaluation.controls != "none"
        return tuple(name for name in names if wanted or not REGISTRY[name].is_control)

    @property
    def fine_tuned(self) -> tuple[str, ...]:
        """What ``fine_tune`` trains: the model and, under the same protocol, its controls."""
        same = self.evaluation.controls == "same"
        return ("model", *(name for name in self.baselines if same and REGISTRY[name].is_control))

    @property
    def output_dir(self) -> Path:
        """Where the results go: ``output_root/task/protocol``, and a folder for each target."""
        folder = Path(self.output_root) / self.name / self.protocol
        return folder / self.data.target if self.data.beside else folder

    def to_dict(self) -> dict[str, Any]:
        """Nested plain types, as written to config.yaml."""
        return plain(dataclasses.asdict(self))
