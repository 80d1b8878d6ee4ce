"""Pretraining, top to bottom: data, model, optimizer, resume, loop (spec 5)."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from src import monitors
from src.config import Config
from src.datasets.fmri import FMRIDataset
from src.datasets.sampler import MicroBatchSampler, NumberedSamples
from src.helper import (
    check_same_data,
    init_collator,
    init_dataset,
    init_model,
    init_opt,
    init_roi_features,
    load_run,
    restore,
)
from src.journal import describe, report_monitors, report_step
from src.models.jepa import Networks
from src.utils.checkpoint import (
    NETWORKS,
    checkpoint_path,
    network_state,
    save_checkpoint,
)
from src.utils.distributed import Ranks, stop_requests
from src.utils.errors import UserError
from src.utils.figures import draw_curves, draw_masks
from src.utils.loading import batches_of, leave_signals_to_the_trainer
from src.utils.logging import RunLog, git_revision, setup_logging
from src.utils.meters import NonFiniteLoss, StepBuffer, StepRecord
from src.utils.precision import autocast
from src.utils.schedulers import Schedule

logger = logging.getLogger(__name__)

# The release's columns, then ours.
CSV_COLUMNS = (
    "epoch",
    "itr",
    "loss",
    "mask-A",
    "mask-B",
    "time (ms)",
    "step",
    "lr",
    "weight_decay",
    "momentum",
    "grad_norm",
    *monitors.COLUMNS,
)


MOST_NAMES = 10  # of samples in one message


def main(ranks: Ranks, config: Config, resume: bool = False) -> None:
    """Pretrain as ``config`` says, in this process of ``ranks``; write ``config.logging.folder``.

    Raises:
        UserError: bad data, a checkpoint that cannot be resumed, or a loss that is not finite.
    """
    # -------------------------------------------------------------------------- folder and resume
    folder, tag = Path(config.logging.folder), config.logging.write_tag
    latest = checkpoint_path(folder, tag)
    state, start = None, _resume_path(config, latest)
    if resume or config.meta.load_checkpoint:
        state = load_run(start, config, ranks.world_size)
    elif latest.exists():
        raise UserError(
            f"{folder} already holds a run ({latest.name}). Go on with it by --resume, or write "
            "elsewhere: logging.folder=..."
        )
    setup_logging(folder, ranks.main)

    # --------------------------------------------------------------------------------------- data
    stats = state["normalization"] if state and "median" in state["normalization"] else None
    with ranks.main_first():  # it computes the robust statistics, once for a data set
        dataset = init_dataset(config, "train", stats)
    if state:
        check_same_data(state, dataset, start)
    held_out = monitors.FixedClips(config, config.logging.monitor_split, dataset.stats)
    fitted_on = monitors.FixedClips(config, "train", dataset.stats)
    collator = init_collator(config, seed=config.meta.seed, rank=ranks.rank)
    sampler = MicroBatchSampler(
        len(dataset),
        batch_size=config.data.batch_size,
        accumulation=config.meta.accumulation_steps,
        epochs=config.optimization.epochs,
        repeats=config.data.repeats,
        seed=config.meta.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        first_step=state["step"] if state else 0,
    )
    loader = DataLoader(
        NumberedSamples(dataset),
        batch_sampler=sampler,
        collate_fn=collator,
        num_workers=config.data.num_workers,
        worker_init_fn=leave_signals_to_the_trainer,
        pin_memory=config.data.pin_mem and ranks.device.type == "cuda",
    )

    # -------------------------------------------------------------------------------------- model
    features = init_roi_features(config, dataset, state)
    networks = init_model(config, features, ranks.device)
    if config.meta.compile:
        networks.compile()
    networks.distribute(ranks, config.meta.accumulation_steps)
    precision = autocast(ranks.device, config.meta.use_bfloat16)

    # ------------------------------------------------------------------------------ optimizer
    optimizer, schedule = init_opt(
        networks.encoder, networks.predictor, config, sampler.steps_per_epoch
    )
    first_step = restore(state, start, networks, optimizer) if state else 0

    # ---------------------------------------------------------------------------------------- log
    log = RunLog(
        folder,
        f"{tag}_r0.csv",
        CSV_COLUMNS,
        ranks.main,
        resume_key="step",
        resume_at=first_step + 1,
    )
    knowledge = {
        "config": config.to_dict(),
        "normalization": {
            "method": config.normalization,
            **{name: torch.as_tensor(value) for name, value in (dataset.stats or {}).items()},
        },
        "gradients": features,
        "roi_labels": list(dataset.folder.roi_labels),
        "atlas": dataset.folder.atlas,
        "n_clips": len(dataset),
        "revision": git_revision() if ranks.main else None,
    }
    if ranks.main:
        (folder / "params-ijepa.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
        with (folder / "revision.txt").open("a") as file:
            file.write(f"{knowledge['revision']} from step {first_step}\n")
        draw_masks(
            [collator.sample(1, step) for step in range(6)], config.grid, folder / "masks.png"
        )
        describe(config, dataset, held_out, sampler, networks, ranks)

    def watch() -> dict[str, float]:
        """The learning monitors now; only the main process takes them."""
        return monitors.measure(
            networks,
            fitted_on,
            held_out,
            monitors.fixed_masks(config),
            ranks.device,
            precision,
        )

    def save(step: int, loss: float) -> None:
        """Write the latest checkpoint, and the epoch's own when it is due."""
        if ranks.main:
            epoch, inside = divmod(step, sampler.steps_per_epoch)
            last = epoch == config.optimization.epochs
            current = {
                **{name: network_state(getattr(networks, name)) for name in NETWORKS},
                "opt": optimizer.state_dict(),
                "scaler": None,
                "epoch": epoch,
                "loss": loss,
                "batch_size": config.data.batch_size,
                "world_size": ranks.world_size,
                "lr": schedule.lr(step),
                "step": step,
                "rng": rng_state(),
                "monitors": {"first": first_monitors, "last": last_monitors},
                **knowledge,
            }
            save_checkpoint(latest, current)
            if inside == 0 and (epoch % config.logging.checkpoint_every == 0 or last):
                save_checkpoint(checkpoint_path(folder, tag, epoch), current)
        ranks.barrier()

    # --------------------------------------------------------------------------------------- loop
    total_steps = sampler.steps_per_epoch * config.optimization.epochs
    loss = state["loss"] if state else math.nan
    first_monitors = last_monitors = None
    if state:
        first_monitors, last_monitors = state["monitors"]["first"], state["monitors"]["last"]
    elif ranks.main:
        first_monitors = last_monitors = watch()
        report_monitors(first_monitors, 0, log)
    buffer = StepBuffer()

    bar = tqdm(total=total_steps, initial=first_step, unit="step", disable=not ranks.main)
    with stop_requests() as stop, logging_redirect_tqdm(), bar, batches_of(loader) as batches:
        for step in range(first_step + 1, total_steps + 1):
            record = train_step(
                step,
                batches,
                networks,
                optimizer,
                schedule,
                config.meta.accumulation_steps,
                precision,
            )
            epoch, inside = divmod(step - 1, sampler.steps_per_epoch)
            record.scalars |= {"epoch": epoch + 1, "itr": inside}
            buffer.add(record)
            bar.update()

            stopping = ranks.any(stop.is_set())
            epoch_ends = inside == sampler.steps_per_epoch - 1
            logging_now = step % config.logging.log_every == 0 or step == total_steps
            if not (logging_now or epoch_ends or stopping):
                continue
            try:
                rows = buffer.flush(ranks)
            except NonFiniteLoss as error:
                log.rows(error.before)
                raise UserError(_explain(error, dataset, latest)) from error
            loss = rows[-1]["loss"]
            if ranks.main:
                monitoring = step % config.logging.monitor_every == 0 or step == total_steps
                if logging_now and monitoring:
                    last_monitors = watch()
                    rows[-1] |= last_monitors
                    report_monitors(last_monitors, step, log)
                log.rows(rows)
                if logging_now:
                    report_step(rows[-1], step, total_steps, log, bar)
            if epoch_ends or stopping:
                save(step, loss)
            buffer.restart_clock()
            if stopping and step < total_steps:
                logger.info("stopped by a signal after step %d; go on with --resume", step)
                log.close()
                return

    # ---------------------------------------------------------------------------------------- end
    log.close()
    if ranks.main:
        draw_curves(folder / f"{tag}_r0.csv", folder / "loss.png")
        logger.info("checkpoint: %s", latest)
        logger.info(monitors.verdict(first_monitors, last_monitors))


def train_step(
    step: int,
    batches: Iterator[tuple[dict[str, Tensor], list[Tensor], list[Tensor]]],
    networks: Networks,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    accumulation_steps: int,
    precision: Callable[[], AbstractContextManager],
) -> StepRecord:
    """One optimizer step over ``accumulation_steps`` micro-batches, with no host synchronisation.

    With several processes, gradients are exchanged in the last micro-step only (method 8.11).
    """
    device = next(networks.encoder.parameters()).device
    losses, rows = [], []
    for micro in range(1, accumulation_steps + 1):
        batch, (masks_enc,), (masks_pred,) = next(batches)
        rows.append(batch["row"].tolist())
        x, masks_enc, masks_pred = (
            tensor.to(device, non_blocking=True)
            for tensor in (batch["fmri"], masks_enc, masks_pred)
        )
        with nullcontext() if micro == accumulation_steps else networks.no_sync():
            with precision():
                loss = networks.loss(x, masks_enc, masks_pred)
            (loss / accumulation_steps).backward()
        losses.append(loss.detach())

    lr, weight_decay, momentum = (
        schedule.lr(step),
        schedule.weight_decay(step),
        schedule.momentum(step),
    )
    for group in optimizer.param_groups:
        group["lr"] = lr
        if group["decay"]:
            group["weight_decay"] = weight_decay
    gradients = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    grad_norm = nn.utils.get_total_norm(gradients)
    optimizer.step()
    networks.clear_gradients(optimizer)
    networks.update_target(momentum)
    scalars = {
        "step": step,
        "mask-A": masks_enc.shape[1],
        "mask-B": masks_pred.shape[1],
        "lr": lr,
        "weight_decay": weight_decay,
        "momentum": momentum,
    }
    return StepRecord(losses, grad_norm, rows, scalars)


def rng_state() -> dict[str, Tensor]:
    """Random state of this process; what training draws is a function of the step anyway."""
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _resume_path(config: Config, latest: Path) -> Path:
    """The latest checkpoint; before there is one, ``read_checkpoint``, a path or a name beside it.

    In this order, or a run that is started again and again by a scheduler would begin each time at
    the same ``read_checkpoint``, over what it did since.
    """
    name = config.meta.read_checkpoint
    if name is None or latest.exists():
        return latest
    return Path(name) if Path(name).exists() else latest.parent / name


def _explain(error: NonFiniteLoss, dataset: FMRIDataset, latest: Path) -> str:
    """A non-finite loss, in the words of the person whose run it ends."""
    runs = dataset.folder.runs.loc[sorted(set(error.rows))]
    names = [
        f"{run.participant_id} (session {run.session}, run {run.run})"
        for run in runs[:MOST_NAMES].itertuples()
    ]
    names += [f"and {len(runs) - MOST_NAMES} more"] if len(runs) > MOST_NAMES else []
    last_good = f"The last good checkpoint is {latest}" if latest.exists() else "No checkpoint yet"
    return (
        f"{error}. Samples: {', '.join(names)}. {last_good}. Look at these runs, or lower "
        "optimization.lr."
    )
