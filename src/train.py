"""Pretraining, top to bottom: data, model, optimizer, state, loop (method 5)."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.contrib.logging import logging_redirect_tqdm

from .config import Config
from .helper import (
    init_collator,
    init_dataset,
    init_loader,
    init_model,
    init_opt,
    init_roi_features,
    init_sampler,
    load_weights,
)
from .models.jepa import Networks
from .monitors import Monitors, columns_of
from .pretrain_state import PretrainState, state_to_go_on_from
from .run_report import open_log, report_end, report_monitors, report_start, report_step
from .utils.checkpoint import CheckpointWriter, checkpoint_path, remove_leftovers
from .utils.distributed import Ranks
from .utils.loading import batches_of
from .utils.logging import git_revision, setup_logging
from .utils.precision import autocast
from .utils.progress import progress_bar
from .utils.schedulers import Schedule
from .utils.signals import name_of, stop_requests
from .utils.step_buffer import NonFiniteLoss, StepBuffer, StepRecord

logger = logging.getLogger(__name__)


def main(ranks: Ranks, config: Config, resume: bool = False) -> None:
    """Pretrain as ``config`` says, in this process of ``ranks``; write ``config.logging.folder``.

    Raises:
        SystemExit: if a signal stopped it before its last step, with the signal's exit code.
        UserError: bad data, a checkpoint that cannot be resumed or written, or a loss that is not
            finite.
    """
    folder, tag = Path(config.logging.folder), config.logging.write_tag
    before = state_to_go_on_from(config, resume)
    if before:
        before.check_same_run(config, ranks.world_size)
    setup_logging(folder, ranks.main)

    # --------------------------------------------------------------------------------------- data
    with ranks.main_first():  # it computes the robust statistics, once for a data set
        clip_input = replace(config.clip_input, stats=before and before.stats)
        dataset = init_dataset(config, "train", clip_input)
    if before:
        before.check_same_data(dataset)
    monitors = Monitors(config, dataset.clip_input)
    collator = init_collator(config, seed=config.meta.seed, rank=ranks.rank)
    sampler = init_sampler(config, len(dataset), ranks, first_step=before.step if before else 0)
    loader = init_loader(config, dataset, sampler, collator, ranks.device)

    # -------------------------------------------------------------------------------------- model
    roi_features = init_roi_features(config, dataset, before and before.gradients)
    networks = init_model(config, roi_features, ranks.device)
    precision = autocast(ranks.device, config.meta.use_bfloat16)

    # ---------------------------------------------------------------------------------- optimizer
    accumulation = config.meta.accumulation_steps
    optimizer, schedule = init_opt(networks, config, sampler.steps_per_epoch)

    # -------------------------------------------------------------------------------------- state
    untrained = None
    if before:
        before.restore(networks, optimizer)
    elif config.meta.init_from is not None:
        if ranks.main:  # what the run is compared with: random weights, which step 0 has not here
            untrained = monitors.measure_signal(networks, ranks.device, precision)
        load_weights(networks, config.meta.init_from)
    if config.meta.compile:
        networks.compile()
    networks.distribute(ranks, accumulation)
    revision = git_revision() if ranks.main else None
    state = PretrainState.begin(config, dataset, ranks, revision, before)
    log = open_log(folder, tag, ranks.main, state.step, networks.objective.logged)
    if ranks.main:
        remove_leftovers(folder, tag)
        report_start(config, state, dataset, monitors, collator, sampler, networks, ranks)
        if not before:
            first = monitors.measure(networks, ranks.device, precision)
            state.monitors = {"untrained": untrained or first, "first": first, "last": first}
            report_monitors(state.monitors, 0, log)

    # --------------------------------------------------------------------------------------- loop
    total_steps = sampler.steps_per_epoch * config.optimization.epochs
    buffer = StepBuffer()
    bar = progress_bar(total=total_steps, initial=state.step, unit="step", disable=not ranks.main)
    with (
        stop_requests() as stop,
        logging_redirect_tqdm(),
        bar,
        CheckpointWriter(folder, tag) as writer,
        batches_of(loader) as batches,
    ):
        if state.step < total_steps:
            logger.info("the first step is running")
        else:
            logger.info("the run is finished: %d of %d steps are done", state.step, total_steps)
        for step in range(state.step + 1, total_steps + 1):
            writer.check()
            record = train_step(
                step,
                batches,
                networks,
                optimizer,
                schedule,
                accumulation,
                precision,
                config.optimization.clip_grad,
            )
            epoch, inside = divmod(step - 1, sampler.steps_per_epoch)
            record.scalars |= {"epoch": epoch + 1, "itr": inside}
            buffer.add(record)
            bar.update()

            stopping = ranks.max(stop.exit_code)
            epoch_ends = inside == sampler.steps_per_epoch - 1
            logging_now = step % config.logging.log_every == 0 or step == total_steps
            if not (logging_now or epoch_ends or stopping):
                continue
            try:
                rows = buffer.flush(ranks)
            except NonFiniteLoss as error:
                log.rows(error.before)
                writer.wait()
                runs, last_good = dataset.folder.runs.loc[error.rows], checkpoint_path(folder, tag)
                raise error.explained(runs, "lower optimization.lr", last_good) from error
            if ranks.main:
                # A run that stops saves without measuring, which may outlast its scheduler's grace.
                monitoring = step % config.logging.monitor_every == 0 and not stopping
                if monitoring or step == total_steps:
                    state.monitors["last"] = monitors.measure(networks, ranks.device, precision)
                    rows[-1] |= columns_of(state.monitors["last"])
                    report_monitors(state.monitors, step, log)
                log.rows(rows)
                if logging_now:
                    report_step(rows[-1], step, total_steps, log, bar)
            if epoch_ends or stopping:
                state.step, state.epoch = step, step // sampler.steps_per_epoch
                state.loss, state.lr = rows[-1]["loss"], rows[-1]["lr"]
                due = state.epoch % config.logging.checkpoint_every == 0 or step == total_steps
                if ranks.main:
                    state.save(writer, networks, optimizer, keep=epoch_ends and due)
            buffer.restart_clock()
            if stopping and step < total_steps:
                writer.wait()
                ranks.barrier()
                name = name_of(stopping)
                logger.info("stopped by %s after step %d; go on with --resume", name, step)
                log.close()
                raise SystemExit(stopping)

        # A signal that comes from here on is of no effect: the run is finished.
        writer.wait()
        ranks.barrier()
        log.close()
        if ranks.main:
            report_end(folder, tag, state)


def train_step(
    step: int,
    batches: Iterator[tuple[dict[str, Tensor], list[Tensor], list[Tensor]]],
    networks: Networks,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    accumulation_steps: int,
    precision: Callable[[], AbstractContextManager],
    clip_grad: float | None = None,
) -> StepRecord:
    """One optimizer step over ``accumulation_steps`` micro-batches, with no host synchronisation.

    With several processes, gradients are exchanged in the last micro-step only (method 8.11).
    Gradients whose norm is above ``clip_grad`` are scaled down to it; the norm of the record is the
    one before.
    """
    device = next(networks.encoder.parameters()).device
    losses, parts, rows = [], [], []
    for micro in range(1, accumulation_steps + 1):
        batch, (masks_enc,), (masks_pred,) = next(batches)
        rows.append(batch["row"].tolist())
        x, masks_enc, masks_pred = (
            tensor.to(device, non_blocking=True)
            for tensor in (batch["fmri"], masks_enc, masks_pred)
        )
        with nullcontext() if micro == accumulation_steps else networks.no_sync():
            with precision():
                loss, loss_parts = networks.loss(x, masks_enc, masks_pred, step)
            (loss / accumulation_steps).backward()
        losses.append(loss.detach())
        parts.append(loss_parts)

    lr, weight_decay, momentum = (
        schedule.lr(step),
        schedule.weight_decay(step),
        schedule.momentum(step),
    )
    for group in optimizer.param_groups:
        group["lr"] = lr
        if group["decay"]:
            group["weight_decay"] = weight_decay
    trained = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    grad_norm = nn.utils.get_total_norm([p.grad for p in trained])
    if clip_grad is not None:
        nn.utils.clip_grads_with_norm_(trained, clip_grad, grad_norm)
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
    means = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
    return StepRecord(losses, grad_norm, rows, scalars, means)
