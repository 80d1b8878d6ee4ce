"""Every key of a pretraining YAML: one dataclass per section, loading, overrides and errors.

The release's keys keep their names and sections, so that a config written for it runs unchanged
(``RELEASE_KEYS`` lists those that have other names here). Keys that are new here have defaults.
"""

import dataclasses
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from .datasets.clip_input import DOWNSAMPLE_STRIDE, BadRois, ClipInput, ShortRuns
from .datasets.normalization import GlobalSignal, Method
from .masks.batch import MaskMode
from .masks.forecast import ForecastMasks
from .masks.modes import MIXED, MODES
from .masks.multiblock import MultiblockMasks
from .masks.roi import RoiMasks
from .masks.spatiotemporal import SpatiotemporalMasks
from .models.encoder_spec import SHARED_OPTIONS, EncoderSpec
from .models.objective import Kind, Loss, Objective, Targets
from .models.predictor_spec import PredictorSpec
from .models.regularizers import Regularizer
from .models.vision_transformer import SIZES
from .utils.errors import UserError
from .utils.yaml_config import (
    NOT_EMPTY,
    Count,
    Fraction,
    Limit,
    Natural,
    NonNegative,
    Positive,
    Relation,
    at_least,
    check_relations,
    from_dict,
    merge,
    nested,
    one_of,
    parse_override,
    plain,
    read_yaml,
)

Range = tuple[float, float]
Momenta = Annotated[
    tuple[Fraction, Fraction],
    Limit("the first not above the last", lambda pair: pair[0] <= pair[1]),
]
MixedModes = Annotated[tuple[Annotated[str, one_of(MODES)], ...], NOT_EMPTY]
FileNamePart = Annotated[str, Limit("a part of a file name", lambda text: "/" not in text)]

# Keys of the release that are not keys here: what each becomes, and what its values mean.
STANDARDIZATION = ("data.normalization", {False: "robust", True: "zscore_sample"})  # method 7
RELEASE_KEYS: dict[str, tuple[str, dict[Any, Any]]] = {
    "meta.use_standatdization": STANDARDIZATION,
    "meta.use_standardization": STANDARDIZATION,
    "meta.checkpoint_activations": ("meta.gradient_checkpointing", {False: False, True: True}),
}
# Values of the release that have other names here; the key is the same.
RELEASE_VALUES: dict[str, dict[str, str]] = {"meta.mask_mode": {"roi_mask": "spatiotemporal"}}

logger = logging.getLogger(__name__)


@dataclass
class DataConfig:
    """Which runs, and how a clip is cut from a run."""

    data_dir: str = "data/ukb"  # data-set folder (data/README.md)
    how_to_make: tuple[str, ...] = ()  # commands, with {data_dir}; named where it is missing
    gradient_csv_path: str | None = None  # needed by add_w: mapping and anatomical
    batch_size: Count = 16  # clips per device and micro-step
    crop_size: tuple[Count, Count] = (450, 160)  # ROIs, frames after resampling
    num_workers: Natural = 2
    pin_mem: bool = True
    repeats: Count = 1  # clips drawn from each run in an epoch
    normalization: Method = "robust"
    stride: Count | None = None  # every n-th frame; unset: 3 with meta.downsample, else 1
    target_tr: Positive | None = None  # seconds; resample every run to it instead of striding
    short_runs: ShortRuns = "error"
    bad_rois: BadRois = "exclude"
    clip_sd: Positive | None = None  # normalised values are clamped to +-it; unset: not at all
    global_signal: GlobalSignal = "keep"  # remove: after that, the mean over ROIs of each frame

    @property
    def commands(self) -> list[str]:
        """What makes ``data_dir``, as one types it."""
        folder = shlex.quote(self.data_dir)
        return [command.replace("{data_dir}", folder) for command in self.how_to_make]


@dataclass
class LoggingConfig:
    """Where a run is written, and how often."""

    folder: str = "logs/pretrain"
    write_tag: FileNamePart = "jepa"  # prefix of log and checkpoint files
    log_every: Count = 10  # optimizer steps between lines of the log
    monitor_every: Count = 100  # optimizer steps between measurements on held-out people
    monitor_clips: Annotated[int, at_least(2)] = 64  # held-out, and training to fit
    monitor_split: str = "valid"
    checkpoint_every: Count = 50  # epochs between checkpoints that are kept


@dataclass
class MaskConfig:
    """Patches, and the blocks of each of the :data:`MODES`, whose classes describe them.

    Only the keys of the mode that ``meta.mask_mode`` names have an effect and are checked.
    """

    patch_size: Count = 16  # frames
    min_keep: Count = SpatiotemporalMasks.min_keep
    allow_overlap: bool = SpatiotemporalMasks.allow_overlap
    enc_mask_scale: Range = SpatiotemporalMasks.enc_mask_scale
    pred_mask_R_scale: Range = SpatiotemporalMasks.pred_mask_R_scale
    pred_mask_T_roi_scale: Range = SpatiotemporalMasks.pred_mask_T_roi_scale
    pred_mask_R_roi_scale: Range = SpatiotemporalMasks.pred_mask_R_roi_scale
    pred_mask_T_scale: Range = SpatiotemporalMasks.pred_mask_T_scale
    multiblock_context_scale: Range = MultiblockMasks.multiblock_context_scale
    multiblock_target_scale: Range = MultiblockMasks.multiblock_target_scale
    multiblock_aspect_ratio: Range = MultiblockMasks.multiblock_aspect_ratio
    multiblock_targets: Count = MultiblockMasks.multiblock_targets
    roi_visible_scale: Range = RoiMasks.roi_visible_scale
    roi_target_scale: Range = RoiMasks.roi_target_scale
    forecast_roi_scale: Range = ForecastMasks.forecast_roi_scale
    forecast_patches: Count = ForecastMasks.forecast_patches
    mixed_modes: MixedModes = ("roi", "forecast")  # they alternate by micro-step


@dataclass
class MetaConfig:
    """The networks, precision, and where to start from."""

    model_name: Annotated[str, one_of(SIZES)] = "vit_base"
    embed_dim: Count | None = None  # unset: what model_name has, as for the next two
    depth: Count | None = None
    num_heads: Count | None = None
    pred_depth: Count = 6
    pred_emb_dim: Count = 384
    attn_mode: Literal["normal", "sdpa", "flash_attn"] = "sdpa"
    mask_mode: Annotated[str, one_of((*MODES, MIXED))] = "spatiotemporal"
    add_w: Literal["mapping", "origin", "anatomical"] = "mapping"
    init: Literal["release", "fan_in"] = "release"
    patch_embed_std: Positive = 0.02
    attention_bias: Literal["none", "gradient"] = "none"  # by distance of ROIs (method 11.3)
    bias_components: Count | None = None  # dimensions it maps the gradients to; unset: all
    bias_scales: tuple[Positive, ...] | None = None  # of each head at the start; unset: 1 to 12
    bias_slopes: tuple[NonNegative, ...] | None = None  # over time; unset: .3 to 3
    time_code: Literal["published", "few_patches"] = "published"  # frequencies (method 11.3)
    roi_value_rank: Natural = 0  # of value maps that differ between ROIs; 0: none
    objective: Kind = Objective.kind
    signal_weight: Positive = Objective.signal_weight  # of the signal's error in hybrid
    loss: Loss = Objective.loss  # of the latent prediction
    targets: Targets = Objective.targets
    regularizer: Regularizer = Objective.regularizer
    regularizer_weight: Positive = Objective.regularizer_weight
    load_checkpoint: bool = False
    read_checkpoint: str | None = None  # in logging.folder, or a path; unset: the latest
    init_from: str | None = None  # checkpoint whose weights a new run begins with
    use_bfloat16: bool = True
    accumulation_steps: Count = 1
    gradient_checkpointing: bool = False
    compile: bool = False
    downsample: bool = False
    seed: Natural = 0


@dataclass
class OptimizationConfig:
    """Schedules, all functions of the number of optimizer steps (method 5, 7)."""

    epochs: Count = 300
    warmup: NonNegative = 40  # epochs
    start_lr: NonNegative = 5e-5
    lr: NonNegative = 1e-3
    final_lr: NonNegative = 1e-6
    weight_decay: NonNegative = 0.04
    final_weight_decay: NonNegative = 0.4
    ema: Momenta = (0.996, 1.0)
    ipe_scale: Annotated[float, at_least(1)] = 1.0  # length of the schedules / of the run
    clip_grad: Positive | None = None  # largest norm of the gradient


@dataclass
class Config:
    """A pretraining run."""

    data: DataConfig = field(default_factory=DataConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)

    @property
    def grid(self) -> tuple[int, int]:
        """(R, P): ROIs and time patches per ROI."""
        rois, frames = self.data.crop_size
        return rois, frames // self.mask.patch_size

    def make_mask_modes(self) -> list[MaskMode]:
        """The grid and the blocks of the mode that is set, or of those that alternate; checked."""
        mode = self.meta.mask_mode
        names = self.mask.mixed_modes if mode == MIXED else [mode]
        return [
            MODES[name](
                *self.grid,
                **{
                    field.name: getattr(self.mask, field.name)
                    for field in dataclasses.fields(MODES[name])
                    if hasattr(self.mask, field.name)
                },
            )
            for name in names
        ]

    @property
    def encoder_size(self) -> dict[str, int]:
        """Width, depth and heads: those of ``meta.model_name`` unless the config sets its own."""
        own = {name: getattr(self.meta, name) for name in ("embed_dim", "depth", "num_heads")}
        return SIZES[self.meta.model_name] | {k: v for k, v in own.items() if v is not None}

    @property
    def clip_input(self) -> ClipInput:
        """How a run becomes a clip; robust statistics are those of the training runs."""
        data = self.data
        stride = data.stride or (DOWNSAMPLE_STRIDE if self.meta.downsample else 1)
        return ClipInput(
            crop_size=data.crop_size,
            normalization=data.normalization,
            stride=None if data.target_tr is not None else stride,
            target_tr=data.target_tr,
            short_runs=data.short_runs,
            bad_rois=data.bad_rois,
            clip_sd=data.clip_sd,
            global_signal=data.global_signal,
        )

    @property
    def encoder_spec(self) -> EncoderSpec:
        """What the encoder is built of."""
        return EncoderSpec(
            crop_size=self.data.crop_size,
            patch_size=self.mask.patch_size,
            **self.encoder_size,
            init=self.meta.init,
            patch_embed_std=self.meta.patch_embed_std,
            **{name: getattr(self.meta, name) for name in SHARED_OPTIONS},
        )

    @property
    def predictor_spec(self) -> PredictorSpec:
        """What the predictor is built of."""
        return PredictorSpec(
            self.encoder_spec,
            embed_dim=self.meta.pred_emb_dim,
            depth=self.meta.pred_depth,
            signal_head=self.objective.signal,
        )

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        meta = self.meta
        return Objective(
            kind=meta.objective,
            signal_weight=meta.signal_weight,
            loss=meta.loss,
            targets=meta.targets,
            regularizer=meta.regularizer,
            regularizer_weight=meta.regularizer_weight,
            seed=meta.seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Nested plain types, as written to YAML and into checkpoints."""
        return plain(dataclasses.asdict(self))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply ``section.key=value`` overrides; raise :class:`UserError`."""
    return config_from_dict(read_yaml(path), where=str(path), overrides=overrides)


def config_from_dict(
    values: Mapping[str, Any], where: str, overrides: Sequence[str] = ()
) -> Config:
    """Build and check a :class:`Config`; ``where`` names the source in messages."""
    values = {key: dict(val) if isinstance(val, Mapping) else val for key, val in values.items()}
    for override in overrides:
        values = merge(values, nested(*parse_override(override)))
    if overrides:
        where += " and the command line"
    values = _translate_release_keys(values, where)
    config = from_dict(Config, values, where)
    check_relations(config, _relations(config), where)
    try:
        config.make_mask_modes()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return config


def _translate_release_keys(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Replace what the release says by what it means here, and say so; keys of ours win."""
    if not all(isinstance(section, dict) for section in values.values()):
        return values  # from_dict says which is no section
    for old, (new, meanings) in RELEASE_KEYS.items():
        section, key = old.split(".")
        if key not in values.get(section, {}):
            continue
        value = values[section].pop(key)
        if not isinstance(value, bool | str) or value not in meanings:
            allowed = ", ".join(map(_as_yaml, meanings))
            raise UserError(f"{where}: {old} is {value!r}; allowed: {allowed}.")
        meaning = meanings[value]
        new_section, new_key = new.split(".")
        if new_key in values.get(new_section, {}):
            logger.warning("%s: %s has no effect beside %s", where, old, new)
            continue
        values = merge(values, nested(new, meaning))
        meaning = f"{new}: {_as_yaml(meaning)}"
        logger.info("%s: %s: %s means %s", where, old, _as_yaml(value), meaning)
    for name, meanings in RELEASE_VALUES.items():
        section, key = name.split(".")
        value = values.get(section, {}).get(key)
        if isinstance(value, str) and value in meanings:
            values = merge(values, nested(name, meanings[value]))
            logger.info("%s: %s: %s means %s", where, name, value, meanings[value])
    return values


def _as_yaml(value: bool | str) -> str:
    return str(value).lower() if isinstance(value, bool) else value


def _relations(config: Config) -> Iterator[Relation]:
    """What ties several keys; the limits of single ones stand beside them."""
    data, mask, meta = config.data, config.mask, config.meta
    yield Relation(
        config.logging.monitor_every % config.logging.log_every == 0,
        "logging.monitor_every",
        f"a multiple of logging.log_every ({config.logging.log_every})",
    )
    yield Relation(
        data.crop_size[1] % mask.patch_size == 0,
        "data.crop_size",
        f"frames that are a multiple of mask.patch_size ({mask.patch_size})",
    )
    yield Relation(
        config.grid[1] >= 2, "data.crop_size", "at least two patches of mask.patch_size frames"
    )
    yield Relation(
        data.target_tr is None or data.stride is None,
        "data.target_tr",
        "either data.target_tr or data.stride, not both",
    )
    yield Relation(
        meta.attention_bias == "none" or meta.add_w != "origin",
        "meta.attention_bias",
        "none with meta.add_w: origin, which has no gradients to measure distances in; or "
        "add_w: mapping",
    )
    heads = config.encoder_size["num_heads"]
    for key in ("bias_components", "bias_scales", "bias_slopes"):
        yield Relation(
            meta.attention_bias != "none" or getattr(meta, key) is None,
            f"meta.{key}",
            "null unless meta.attention_bias is gradient, as nothing else uses it",
        )
    for key in ("bias_scales", "bias_slopes"):
        levels = getattr(meta, key)
        yield Relation(
            levels is None or len(levels) == heads,
            f"meta.{key}",
            f"one number for each of the {heads} heads",
        )
    for key, width in (
        ("meta.embed_dim", config.encoder_size["embed_dim"]),
        ("meta.pred_emb_dim", meta.pred_emb_dim),
    ):
        yield Relation(
            width % heads == 0 and width % 4 == 0,
            key,
            f"a multiple of 4 and of the {heads} heads (it is {width} here)",
        )
    yield Relation(
        meta.signal_weight == Objective.signal_weight or meta.objective == "hybrid",
        "meta.signal_weight",
        f"{Objective.signal_weight}, or meta.objective hybrid (it is {meta.objective}), whose "
        "parts it weighs",
    )
    for key in ("loss", "targets"):
        published = getattr(Objective, key)
        yield Relation(
            config.objective.latent or getattr(meta, key) == published,
            f"meta.{key}",
            f"{published} beside meta.objective {meta.objective}, which predicts no latents",
        )
    published = Objective.regularizer_weight
    yield Relation(
        meta.regularizer != "none" or meta.regularizer_weight == published,
        "meta.regularizer_weight",
        f"{published} beside meta.regularizer none",
    )
    yield Relation(
        meta.regularizer == "none" or data.batch_size > 1,
        "data.batch_size",
        f"2 or more beside meta.regularizer {meta.regularizer}, which compares the clips of a "
        "micro-batch",
    )
    epochs = config.optimization.epochs
    yield Relation(
        config.optimization.warmup <= epochs, "optimization.warmup", f"0 to epochs ({epochs})"
    )
