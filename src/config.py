"""Every key of a pretraining YAML: one dataclass per section, loading, overrides and errors.

The release's keys keep their names and sections, so that a config written for it runs unchanged
(``RELEASE_KEYS`` lists those that have other names here). Keys that are new here have defaults.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from src.masks.sampler import MaskSettings
from src.models.vision_transformer import SIZES
from src.utils.errors import UserError, nearest
from src.utils.typed import from_dict, merge, nested, parse_override, plain, read_yaml

Range = tuple[float, float]

# The release decimates multiband data (TR about 0.7 s) by 3 to a TR of about 2 s (spec 7).
DOWNSAMPLE_STRIDE = 3

# Keys of the release that have another name here, and what their values mean.
STANDARDIZATION = ("data.normalization", {False: "robust", True: "zscore_sample"})  # method 7
RELEASE_KEYS: dict[str, tuple[str, dict[bool, bool | str]]] = {
    "meta.use_standatdization": STANDARDIZATION,
    "meta.use_standardization": STANDARDIZATION,
    "meta.checkpoint_activations": ("meta.gradient_checkpointing", {False: False, True: True}),
}
MASK_MODES = ("spatiotemporal", "roi_mask")  # the method's masks, here and in the release

logger = logging.getLogger(__name__)


@dataclass
class DataConfig:
    """Which runs, and how a clip is cut from a run."""

    data_dir: str = "data/ukb"
    gradient_csv_path: str | None = None  # needed by add_w: mapping and anatomical
    batch_size: int = 16  # clips per device and micro-step
    crop_size: tuple[int, int] = (450, 160)  # ROIs, frames after resampling
    num_workers: int = 2
    pin_mem: bool = True
    repeats: int = 1  # clips drawn from each run in an epoch
    normalization: Literal["robust", "zscore_sample", "zscore_roi", "none"] = "robust"
    stride: int | None = None  # every n-th frame; unset: 3 with meta.downsample, else 1
    target_tr: float | None = None  # seconds; resample every run to it instead of striding
    short_runs: Literal["error", "pad", "skip"] = "error"
    bad_rois: Literal["exclude", "zero"] = "exclude"


@dataclass
class LoggingConfig:
    """Where a run is written, and how often."""

    folder: str = "logs/pretrain"
    write_tag: str = "jepa"
    log_every: int = 10  # optimizer steps between lines of the log
    monitor_every: int = 100  # optimizer steps between measurements on held-out people
    monitor_clips: int = 64  # held-out clips they are taken from
    monitor_split: str = "valid"
    checkpoint_every: int = 50  # epochs between checkpoints that are kept


@dataclass
class MaskConfig:
    """The observation and target blocks, as :class:`MaskSettings` describes them (method 6)."""

    patch_size: int = 16  # frames
    min_keep: int = MaskSettings.min_keep
    allow_overlap: bool = MaskSettings.allow_overlap
    enc_mask_scale: Range = MaskSettings.enc_mask_scale
    pred_mask_R_scale: Range = MaskSettings.pred_mask_R_scale
    pred_mask_T_roi_scale: Range = MaskSettings.pred_mask_T_roi_scale
    pred_mask_R_roi_scale: Range = MaskSettings.pred_mask_R_roi_scale
    pred_mask_T_scale: Range = MaskSettings.pred_mask_T_scale


@dataclass
class MetaConfig:
    """The networks, precision, and where to start from."""

    model_name: str = "vit_base"
    embed_dim: int | None = None  # unset: what model_name has, as for the next two
    depth: int | None = None
    num_heads: int | None = None
    pred_depth: int = 6
    pred_emb_dim: int = 384
    attn_mode: Literal["normal", "sdpa", "flash_attn"] = "sdpa"
    add_w: Literal["mapping", "origin", "anatomical"] = "mapping"
    init: Literal["release", "fan_in"] = "release"
    patch_embed_std: float = 0.02
    load_checkpoint: bool = False
    read_checkpoint: str | None = None  # in logging.folder, or a path; unset: the latest
    use_bfloat16: bool = True
    accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    compile: bool = False
    downsample: bool = False
    seed: int = 0


@dataclass
class OptimizationConfig:
    """Schedules, all functions of the number of optimizer steps (spec 5, 7)."""

    epochs: int = 300
    warmup: float = 40  # epochs
    start_lr: float = 5e-5
    lr: float = 1e-3
    final_lr: float = 1e-6
    weight_decay: float = 0.04
    final_weight_decay: float = 0.4
    ema: Range = (0.996, 1.0)
    ipe_scale: float = 1.0  # schedules are stretched to this many times the run's length


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

    def make_mask_settings(self) -> MaskSettings:
        """The grid and the blocks of :class:`MaskConfig`, which check each other."""
        blocks = {key: value for key, value in vars(self.mask).items() if key != "patch_size"}
        return MaskSettings(*self.grid, **blocks)

    @property
    def encoder_size(self) -> dict[str, int]:
        """Width, depth and heads: those of ``meta.model_name`` unless the config sets its own."""
        own = {name: getattr(self.meta, name) for name in ("embed_dim", "depth", "num_heads")}
        return SIZES[self.meta.model_name] | {k: v for k, v in own.items() if v is not None}

    @property
    def sampling(self) -> dict[str, Any]:
        """How clips are resampled, as keyword arguments of :class:`FMRIDataset`."""
        if self.data.target_tr is not None:
            return {"sampling": "tr", "target_tr": self.data.target_tr}
        default = DOWNSAMPLE_STRIDE if self.meta.downsample else 1
        return {"sampling": "stride", "stride": self.data.stride or default}

    @property
    def normalization(self) -> str:
        """The method of :mod:`src.datasets.normalization`."""
        return self.data.normalization

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
        name, value = parse_override(override)
        if "." not in name:
            raise UserError(f"'{override}' is not an override; write section.key=value.")
        values = merge(values, nested(name, value))
    _translate_release_keys(values, where)
    _drop_mask_mode(values.get("meta"), where)
    config = from_dict(Config, values, where)
    _check(config, where)
    return config


def _translate_release_keys(values: dict[str, Any], where: str) -> None:
    """Put :data:`RELEASE_KEYS` under the names they have here, and say so; ours win over them."""
    for old, (new, meanings) in RELEASE_KEYS.items():
        (section, key), (new_section, new_key) = old.split("."), new.split(".")
        target = values.setdefault(new_section, {})
        if not (isinstance(values.get(section), dict) and isinstance(target, dict)):
            continue  # said below, as of any section that is none
        if key not in values[section]:
            continue
        value = values[section].pop(key)
        if not isinstance(value, bool):
            raise UserError(f"{where}: {old} is {value!r}; allowed: true or false.")
        if new_key in target:
            logger.warning("%s has no effect beside %s", old, new)
            continue
        target[new_key] = meanings[value]
        meaning = str(meanings[value]).lower()
        logger.info("%s: %s means %s: %s", old, str(value).lower(), new, meaning)


def _drop_mask_mode(meta: Any, where: str) -> None:
    """Take the release's ``mask_mode`` out of the section: there is one kind of masks here."""
    if isinstance(meta, dict) and "mask_mode" in meta:
        name = meta.pop("mask_mode")
        if name not in MASK_MODES:
            raise UserError(
                f"{where}: meta.mask_mode is {name!r}; the masks of method 6 are the only ones "
                f"({' or '.join(MASK_MODES)}). Leave the key out."
            )
        logger.info(
            "%s: meta.mask_mode %s means the spatiotemporal masks of method 6, the only ones here; "
            "the key can be left out",
            where,
            name,
        )


def _check(config: Config, where: str) -> None:
    """Refuse values that no run can have."""

    def require(condition: bool, key: str, allowed: str) -> None:
        if not condition:
            section, name = key.split(".")
            value = getattr(getattr(config, section), name)
            raise UserError(f"{where}: {key} is {plain(value)!r}; allowed: {allowed}.")

    data, mask, meta, opt = config.data, config.mask, config.meta, config.optimization
    for key in ("data.batch_size", "data.repeats", "mask.patch_size"):
        require(getattr(getattr(config, key.split(".")[0]), key.split(".")[1]) >= 1, key, ">= 1")
    for name in ("log_every", "monitor_every", "checkpoint_every"):
        require(getattr(config.logging, name) >= 1, f"logging.{name}", ">= 1")
    require("/" not in config.logging.write_tag, "logging.write_tag", "a part of a file name")
    require(config.logging.monitor_clips >= 2, "logging.monitor_clips", ">= 2")
    require(
        config.logging.monitor_every % config.logging.log_every == 0,
        "logging.monitor_every",
        f"a multiple of logging.log_every ({config.logging.log_every})",
    )
    require(data.num_workers >= 0, "data.num_workers", ">= 0")
    require(min(data.crop_size) >= 1, "data.crop_size", "two numbers >= 1: ROIs, frames")
    require(
        data.crop_size[1] % mask.patch_size == 0,
        "data.crop_size",
        f"frames that are a multiple of mask.patch_size ({mask.patch_size})",
    )
    require(config.grid[1] >= 2, "data.crop_size", "at least two patches of mask.patch_size frames")
    require(data.stride is None or data.stride >= 1, "data.stride", ">= 1")
    require(data.target_tr is None or data.target_tr > 0, "data.target_tr", "> 0 seconds")
    require(
        data.target_tr is None or data.stride is None,
        "data.target_tr",
        "either data.target_tr or data.stride, not both",
    )
    try:
        config.make_mask_settings()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if meta.model_name not in SIZES:
        raise UserError(
            f"{where}: meta.model_name is '{meta.model_name}'; "
            f"allowed: {', '.join(SIZES)}.{nearest(meta.model_name, SIZES)}"
        )
    for name in ("embed_dim", "depth", "num_heads"):
        value = getattr(meta, name)
        require(value is None or value >= 1, f"meta.{name}", ">= 1")
    for name in ("pred_depth", "pred_emb_dim", "accumulation_steps"):
        require(getattr(meta, name) >= 1, f"meta.{name}", ">= 1")
    heads = config.encoder_size["num_heads"]
    for key, width in (
        ("meta.embed_dim", config.encoder_size["embed_dim"]),
        ("meta.pred_emb_dim", meta.pred_emb_dim),
    ):
        require(
            width % heads == 0 and width % 4 == 0,
            key,
            f"a multiple of 4 and of the {heads} heads (it is {width} here)",
        )
    require(meta.patch_embed_std > 0, "meta.patch_embed_std", "> 0")
    require(meta.seed >= 0, "meta.seed", ">= 0")
    require(opt.epochs >= 1, "optimization.epochs", ">= 1")
    require(0 <= opt.warmup <= opt.epochs, "optimization.warmup", f"0 to epochs ({opt.epochs})")
    require(opt.ipe_scale >= 1, "optimization.ipe_scale", ">= 1")
    for name in ("start_lr", "lr", "final_lr", "weight_decay", "final_weight_decay"):
        require(getattr(opt, name) >= 0, f"optimization.{name}", ">= 0")
    require(0 <= opt.ema[0] <= opt.ema[1] <= 1, "optimization.ema", "[first, last] within 0 and 1")
