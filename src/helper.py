"""Data, networks and optimizer from a config, and a run from its checkpoint."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.config import Config
from src.datasets.fmri import FMRIDataset
from src.datasets.gradients import load_gradients
from src.masks.spatiotemporal import SpatiotemporalMaskCollator
from src.models.jepa import Networks
from src.models.vision_transformer import VisionTransformer, VisionTransformerPredictor
from src.utils.checkpoint import NETWORKS, load_checkpoint, load_network, require_keys
from src.utils.errors import UserError
from src.utils.schedulers import Schedule

# What may differ between a run and its continuation without changing the result's meaning.
FREE_TO_CHANGE = {
    "logging",
    "data.data_dir",
    "data.gradient_csv_path",
    "data.num_workers",
    "data.pin_mem",
    "meta.load_checkpoint",
    "meta.read_checkpoint",
    "meta.compile",
    "meta.gradient_checkpointing",
    "meta.attn_mode",
}


# What a run writes besides the networks, and needs to go on.
RUN_KEYS = (
    *("opt", "step", "loss", "world_size", "rng", "monitors", "normalization", "gradients"),
    *("roi_labels", "n_clips"),
)


def init_dataset(
    config: Config, split: str, stats: dict[str, Any] | None, clips: str = "random"
) -> FMRIDataset:
    """Clips of one split as the config describes them."""
    return FMRIDataset(
        config.data.data_dir,
        split,
        config.data.crop_size,
        **config.sampling,
        short_runs=config.data.short_runs,
        normalization=config.normalization,
        stats=stats,
        bad_rois=config.data.bad_rois,
        clips=clips,
        seed=config.meta.seed,
    )


def init_collator(config: Config, seed: int, rank: int = 0) -> SpatiotemporalMaskCollator:
    """Return the collator that draws the masks of the config."""
    return SpatiotemporalMaskCollator(config.make_mask_settings(), seed=seed, rank=rank)


def init_roi_features(
    config: Config, dataset: FMRIDataset, state: dict[str, Any] | None
) -> Tensor | None:
    """Gradients or centroids ``[R, G]``: from the checkpoint if there is one, else from the CSV."""
    if config.meta.add_w == "origin":
        return None
    if state is not None:
        return state["gradients"]
    if config.data.gradient_csv_path is None:
        raise UserError(
            f"meta.add_w is '{config.meta.add_w}', which needs data.gradient_csv_path. Compute one "
            f"with: python -m src.datasets.gradients --data_dir {config.data.data_dir}"
        )
    features = load_gradients(
        config.data.gradient_csv_path,
        dataset.n_rois,
        roi_labels=dataset.folder.roi_labels,
        kind="centroids" if config.meta.add_w == "anatomical" else "gradients",
        training_data=dataset.folder,
    )
    return torch.as_tensor(features)


def init_encoder(
    config: Config, roi_features: Tensor | None, drop_path_rate: float = 0.0
) -> VisionTransformer:
    """The encoder a config describes; ``roi_features`` ``[R, G]`` are gradients or centroids."""
    meta = config.meta
    return VisionTransformer(
        img_size=config.data.crop_size,
        patch_size=config.mask.patch_size,
        **config.encoder_size,
        drop_path_rate=drop_path_rate,
        gradient_pos_embed=None if roi_features is None else roi_features[None],
        attn_mode=meta.attn_mode,
        add_w=meta.add_w,
        gradient_checkpointing=meta.gradient_checkpointing,
        init_scheme=meta.init,
        patch_embed_std=meta.patch_embed_std,
    )


def init_model(config: Config, roi_features: Tensor | None, device: torch.device) -> Networks:
    """Seeded networks on ``device``; the target encoder starts as a copy of the encoder."""
    torch.manual_seed(config.meta.seed)
    encoder = init_encoder(config, roi_features)
    predictor = VisionTransformerPredictor(
        num_patches=encoder.num_patches,
        num_patches_2d=encoder.num_patches_2d,
        embed_dim=encoder.embed_dim,
        predictor_embed_dim=config.meta.pred_emb_dim,
        depth=config.meta.pred_depth,
        num_heads=encoder.num_heads,
        gradient_pos_embed=None if roi_features is None else roi_features[None],
        attn_mode=config.meta.attn_mode,
        add_w=config.meta.add_w,
        gradient_checkpointing=config.meta.gradient_checkpointing,
        init_scheme=config.meta.init,
    )
    target_encoder = copy.deepcopy(encoder).requires_grad_(False)
    return Networks(encoder.to(device), predictor.to(device), target_encoder.to(device))


def init_opt(
    encoder: nn.Module, predictor: nn.Module, config: Config, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, Schedule]:
    """AdamW with no decay on biases and norms, and the run's schedule (spec 7)."""
    parameters = [p for net in (encoder, predictor) for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "decay": True},
            {"params": [p for p in parameters if p.ndim <= 1], "decay": False, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.999),
        fused=True,
    )
    opt = config.optimization
    steps = steps_per_epoch * opt.ipe_scale
    schedule = Schedule(
        total=max(1, round(opt.epochs * steps)),
        warmup=round(opt.warmup * steps),
        start_lr=opt.start_lr,
        peak_lr=opt.lr,
        final_lr=opt.final_lr,
        first_weight_decay=opt.weight_decay,
        final_weight_decay=opt.final_weight_decay,
        ema=opt.ema,
    )
    return optimizer, schedule


def load_run(path: str | Path, config: Config, world_size: int) -> dict[str, Any]:
    """Read the checkpoint of a run of this config; raise :class:`UserError` if it is of another.

    ``batch_size`` and the number of devices may change together, as long as their product, which
    decides what each step sees, stays.
    """
    state = load_checkpoint(path)
    require_keys(state, NETWORKS, path)
    if "step" not in state or not isinstance(state.get("config"), dict):
        raise UserError(
            f"checkpoint {path} was not written by this project: it holds weights but neither "
            "config nor step, so a run cannot be resumed from it."
        )
    require_keys(state, RUN_KEYS, path)
    differences = []
    ours, theirs = _flat(config.to_dict()), _flat(state["config"])
    ours["data.batch_size x devices"] = ours.pop("data.batch_size") * world_size
    theirs["data.batch_size x devices"] = theirs.pop("data.batch_size") * state["world_size"]
    for key in sorted(ours.keys() | theirs.keys()):
        free = key in FREE_TO_CHANGE or key.split(".")[0] in FREE_TO_CHANGE
        if not free and ours.get(key) != theirs.get(key):
            differences.append(f"{key} is {ours.get(key)!r}, was {theirs.get(key)!r}")
    if differences:
        raise UserError(
            f"cannot resume from {path}: the config differs where it matters: "
            f"{'; '.join(differences)}. Use the checkpoint's values, or another logging.folder."
        )
    return state


def check_same_data(state: dict[str, Any], dataset: FMRIDataset, path: str | Path) -> None:
    """Raise :class:`UserError` if a run would go on with other ROIs or another number of clips."""
    if state["roi_labels"] != list(dataset.folder.roi_labels):
        raise UserError(f"cannot resume from {path}: its ROIs are not those of the data, in order.")
    if state["n_clips"] != len(dataset):
        raise UserError(
            f"cannot resume from {path}: it was trained on {state['n_clips']} clips, and "
            f"{dataset.folder.path} has {len(dataset)} for training. Use the data it began with."
        )


def restore(
    state: dict[str, Any],
    path: str | Path,
    networks: Networks,
    optimizer: torch.optim.Optimizer,
) -> int:
    """Put a checkpoint's weights, optimizer and random state in place; return its step."""
    for part in NETWORKS:
        load_network(getattr(networks, part), state[part], path, part)
    optimizer.load_state_dict(state["opt"])
    torch.set_rng_state(state["rng"]["torch"].cpu())
    if torch.cuda.is_available() and "cuda" in state["rng"]:
        torch.cuda.set_rng_state(state["rng"]["cuda"].cpu())
    return state["step"]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
