"""Data, networks and optimizer from a config."""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .config import Config
from .datasets.clip_input import ClipInput
from .datasets.fmri import FMRIDataset
from .datasets.micro_batches import MicroBatchSampler, NumberedSamples
from .datasets.roi_features import load_gradients
from .masks.collator import MaskCollator
from .models.jepa import Networks
from .models.predictor import SIGNAL_HEAD
from .pretrained.file_kinds import kind_of, may_lack
from .utils.checkpoint import PREFIX, find_checkpoint, load_checkpoint, load_network
from .utils.distributed import Ranks
from .utils.errors import PACKAGE, UserError
from .utils.schedulers import Cosine, Linear, Schedule, WarmupCosine

logger = logging.getLogger(__name__)


def init_dataset(
    config: Config, split: str, clip_input: ClipInput, clips: str | int = "random"
) -> FMRIDataset:
    """Clips of one split of the config's data; ``clip_input`` is the config's, with statistics."""
    if config.data.commands and not Path(config.data.data_dir).exists():
        raise UserError(
            f"{config.data.data_dir} does not exist. Make it with: "
            f"{' && '.join(config.data.commands)}"
        )
    return FMRIDataset(config.data.data_dir, split, clip_input, clips=clips, seed=config.meta.seed)


def init_collator(config: Config, seed: int, rank: int = 0) -> MaskCollator:
    """Return the collator that draws the masks of the config."""
    return MaskCollator(*config.make_mask_modes(), seed=seed, rank=rank)


def init_sampler(
    config: Config, n_clips: int, ranks: Ranks, first_step: int = 0
) -> MicroBatchSampler:
    """Return the micro-batches of this rank, from the optimizer step after ``first_step`` on."""
    return MicroBatchSampler(
        n_clips,
        batch_size=config.data.batch_size,
        accumulation=config.meta.accumulation_steps,
        epochs=config.optimization.epochs,
        repeats=config.data.repeats,
        seed=config.meta.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        first_step=first_step,
    )


def init_loader(
    config: Config,
    dataset: FMRIDataset,
    sampler: MicroBatchSampler,
    collator: MaskCollator,
    device: torch.device,
) -> DataLoader:
    """Return the loader of micro-batches with their masks."""
    return DataLoader(
        NumberedSamples(dataset),
        batch_sampler=sampler,
        collate_fn=collator,
        num_workers=config.data.num_workers,
        pin_memory=config.data.pin_mem and device.type == "cuda",
    )


def init_roi_features(config: Config, dataset: FMRIDataset, stored: Tensor | None) -> Tensor | None:
    """Gradients or centroids ``[R, G]``: those of a checkpoint where given, else from the CSV."""
    if config.meta.add_w == "origin":
        return None
    if stored is not None:
        logger.info("the ROI features are the checkpoint's; data.gradient_csv_path is not read")
        return stored
    if config.data.gradient_csv_path is None:
        raise UserError(
            f"meta.add_w is '{config.meta.add_w}', which needs data.gradient_csv_path. Compute "
            f"one with: python -m {PACKAGE}.datasets.prepare.gradients "
            f"--data_dir {config.data.data_dir}"
        )
    features = load_gradients(
        config.data.gradient_csv_path,
        dataset.n_rois,
        roi_labels=dataset.folder.roi_labels,
        kind="centroids" if config.meta.add_w == "anatomical" else "gradients",
        training_data=dataset.folder,
    )
    return torch.as_tensor(features)


def init_model(config: Config, roi_features: Tensor | None, device: torch.device) -> Networks:
    """Seeded networks on ``device``; the target encoder starts as a copy of the encoder."""
    torch.manual_seed(config.meta.seed)
    encoder = config.encoder_spec.build(
        roi_features,
        attn_mode=config.meta.attn_mode,
        gradient_checkpointing=config.meta.gradient_checkpointing,
    )
    predictor = config.predictor_spec.build(
        roi_features,
        attn_mode=config.meta.attn_mode,
        gradient_checkpointing=config.meta.gradient_checkpointing,
    )
    # A head that has no part in the loss never has a gradient, which optimizer and
    # DistributedDataParallel would wait for.
    predictor.predictor_proj.requires_grad_(config.objective.latent)
    target_encoder = copy.deepcopy(encoder).requires_grad_(False)
    return Networks(
        encoder.to(device), predictor.to(device), target_encoder.to(device), config.objective
    )


def load_weights(networks: Networks, path: str | Path) -> None:
    """Begin with the weights of a pretraining checkpoint, of this project or of the release.

    A file without target encoder (or without encoder) gives the other's weights to both, and one
    without predictor, or without the signal head that the objective needs, leaves that as it was
    initialised; the log says what was loaded. The ROI features of a file belong to its weights,
    which were trained with them; the release's files have none, so that those of
    ``gradient_csv_path`` stay.

    Raises:
        UserError: if the file cannot be read, has no encoder, or its shapes are others.
    """
    path = find_checkpoint(path)
    stored = load_checkpoint(path)
    encoders = [part for part in ("encoder", "target_encoder") if part in stored]
    if not encoders:
        raise UserError(
            f"meta.init_from: {path} is not a checkpoint of pretraining: it has neither encoder "
            f"nor target_encoder, but {', '.join(map(str, stored))}."
        )
    sources = {
        "encoder": encoders[0],
        "predictor": "predictor" if "predictor" in stored else None,
        "target_encoder": encoders[-1],
    }
    given = networks.encoder.gradient_pos_embed
    given = None if given is None else given.clone()
    times = networks.encoder.pos_embed_proj.emb_h.clone()
    for part, source in sources.items():
        if source is None:
            logger.warning("%s has no %s: it begins with random weights", path, part)
            continue
        network = getattr(networks, part)
        optional = [*may_lack(kind_of(stored)), *SIGNAL_HEAD]
        weights = _without_unused_head(stored[source], network, path)
        load_network(network, weights, path, part, optional)
        logger.info("%s begins with the weights of %s in %s", part, source, path)
    if not torch.allclose(times, networks.encoder.pos_embed_proj.emb_h, rtol=0, atol=0.01):
        raise UserError(
            f"meta.init_from: {path} was trained with another time code than this run's. Set "
            "meta.time_code to that of its config; the release's files have 'published'."
        )
    learned = networks.encoder.gradient_pos_embed
    if given is not None and not torch.equal(given, learned):
        networks.predictor.gradient_pos_embed.copy_(learned)
        logger.warning(
            "the ROI features are those of %s, not those of data.gradient_csv_path: its weights "
            "were trained with them",
            path,
        )


def _without_unused_head(
    weights: Mapping[str, Tensor], network: nn.Module, path: Path
) -> dict[str, Tensor]:
    """Weights of a file without a signal head that ``network`` lacks; say what differs."""
    stored = {name for name in weights if name.removeprefix(PREFIX) in SIGNAL_HEAD}
    wanted = any(name in SIGNAL_HEAD for name, _ in network.named_parameters())
    if wanted and not stored:
        logger.warning("%s has no signal head: it begins with random weights", path)
    elif stored and not wanted:
        logger.warning("the signal head of %s is not used: meta.objective has none", path)
        return {name: value for name, value in weights.items() if name not in stored}
    return dict(weights)


def init_opt(
    networks: Networks, config: Config, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, Schedule]:
    """AdamW, and the run's schedule (method 7).

    No weight decay on biases, norms and what a network names in ``no_weight_decay()``.
    """
    decayed, others = [], []
    for network in (networks.encoder, networks.predictor):
        exempt = network.no_weight_decay()
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                decays = parameter.ndim > 1 and name not in exempt
                (decayed if decays else others).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "decay": True},
            {"params": others, "decay": False, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.999),
        fused=True,
    )
    opt = config.optimization
    total = max(1, round(opt.epochs * steps_per_epoch * opt.ipe_scale))
    warmup = round(opt.warmup * steps_per_epoch)  # not stretched, as in the release (method 8.13)
    schedule = Schedule(
        WarmupCosine(total, warmup, opt.start_lr, opt.lr, opt.final_lr),
        Cosine(total, opt.weight_decay, opt.final_weight_decay),
        Linear(total, *opt.ema),
    )
    return optimizer, schedule
