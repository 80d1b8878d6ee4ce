"""Reports of a pretraining run: its start, steps, monitors and end."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from .config import Config
from .datasets.fmri import FMRIDataset
from .datasets.micro_batches import MicroBatchSampler
from .masks.batch import MaskBatch
from .masks.collator import MaskCollator
from .masks.draw import draw_masks
from .models.jepa import Networks
from .monitors import COLUMNS, Monitors, columns_of, verdict
from .pretrain_state import PretrainState
from .utils.checkpoint import checkpoint_path
from .utils.curves import draw_curves
from .utils.distributed import Ranks
from .utils.files import naming, write_text
from .utils.logging import RunLog
from .utils.memory import Blocks, MemoryEstimate
from .utils.precision import has_bfloat16
from .utils.progress import ProgressBar

logger = logging.getLogger(__name__)

SLOWEST_SAMPLING = 3.5  # seconds; the slowest TR of the paper's cohorts is 3 s
N_DRAWN = 6  # micro-steps whose masks are drawn, to show how sizes vary
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
    *COLUMNS,
)


def open_log(folder: Path, tag: str, main: bool, step: int, loss_parts: Sequence[str]) -> RunLog:
    """Open the CSV and TensorBoard log of a run that has taken ``step`` steps.

    ``loss_parts`` are the columns of the parts of its loss, where that has several.
    """
    columns = (*CSV_COLUMNS, *loss_parts)
    return RunLog(folder, _csv_name(tag), columns, main, resume_key="step", resume_at=step + 1)


def report_start(
    config: Config,
    state: PretrainState,
    dataset: FMRIDataset,
    monitors: Monitors,
    collator: MaskCollator,
    sampler: MicroBatchSampler,
    networks: Networks,
    ranks: Ranks,
) -> None:
    """Write configuration, revision and a picture of masks; describe the run in the log.

    Raises:
        UserError: if the run's folder cannot be written.
    """
    folder = Path(config.logging.folder)
    _describe_start(state, folder)
    masks = collator.examples(N_DRAWN)
    draw_masks(masks, config.grid, folder / "masks.png")
    _describe_run(config, dataset, len(monitors.held_out), sampler, networks, ranks)
    _describe_memory(config, networks, masks, ranks)


def report_step(
    row: dict[str, float], step: int, total_steps: int, log: RunLog, bar: ProgressBar
) -> None:
    """Write a step to the log, TensorBoard and the progress bar."""
    bar.set_postfix(loss=f"{row['loss']:.4f}")
    logger.info(
        "epoch %d step %d/%d loss %.4f grad norm %.3f lr %.2e (%.0f ms/step)",
        row["epoch"],
        step,
        total_steps,
        row["loss"],
        row["grad_norm"],
        row["lr"],
        row["time (ms)"],
    )
    names = ["loss", "grad_norm", "lr", "weight_decay", "momentum", "time (ms)"]
    names += [name for name in row if name.startswith("loss_")]
    log.scalars({f"train/{name}": row[name] for name in names}, step)


def report_monitors(monitors: Mapping[str, Mapping[str, Any]], step: int, log: RunLog) -> None:
    """Write the last measurement on held-out people to the log and TensorBoard."""
    values = monitors["last"]
    untrained = (monitors.get("untrained") or {}).get("signal_r2", math.nan)
    parts = [
        f"signal R2 {values['signal_r2']:+.4f} (untrained {untrained:+.4f}), "
        f"forecast R2 {values['forecast_r2']:+.4f}"
    ]
    if "r2" in values:
        parts.append(
            f"latent R2 {values['r2']:+.4f}, over a constant per clip "
            f"{values['r2_clip_constant']:+.4f}, swapped {values['r2_swapped']:+.4f}"
        )
    parts.append(
        f"variance {values['variance']:.4g} ({100 * values['variance_share']:.1f} % of the total) "
        f"RankMe {values['rankme']:.1f}"
    )
    logger.info("held-out people after step %d: %s", step, "; ".join(parts))
    shown = columns_of(values) | ({"signal_r2_untrained": untrained} if step == 0 else {})
    log.scalars({f"monitor/{name}": value for name, value in shown.items()}, step)


def report_end(folder: Path, tag: str, state: PretrainState) -> None:
    """Draw the curves of a finished run; its checkpoint and the monitors' verdict go to the log."""
    latest = checkpoint_path(folder, tag)
    if latest.exists():
        start, untrained = (columns_of(state.monitors.get(k) or {}) for k in ("first", "untrained"))
        draw_curves(folder / _csv_name(tag), folder / "loss.png", start, untrained)
    # A finished run of another folder was gone on with: no step was made here.
    logger.info("checkpoint: %s", latest if latest.exists() else state.path)
    logger.info(verdict(state.monitors))


def _csv_name(tag: str) -> str:
    return f"{tag}_r0.csv"


def _describe_start(state: PretrainState, folder: Path) -> None:
    """Write the run's configuration and revision; log the checkpoint that it continues."""
    text = yaml.safe_dump(state.config, sort_keys=False)
    write_text(folder / "params-ijepa.yaml", text)
    revisions = folder / "revision.txt"
    with naming(revisions), revisions.open("a") as file:
        file.write(f"{state.revision} from step {state.step}\n")
    if state.path is not None:
        logger.info("going on from %s, after step %d", state.path, state.step)
        if state.begun_from and state.begun_from["step"] != state.step:
            logger.info("the run began from %(file)s, after step %(step)d", state.begun_from)
    elif named := state.config["meta"]["read_checkpoint"]:
        logger.warning(
            "meta.read_checkpoint is %s and is not read: nothing asks to go on with a run. Add "
            "--resume, or meta.load_checkpoint=true.",
            named,
        )


def _describe_run(
    config: Config,
    dataset: FMRIDataset,
    n_held_out: int,
    sampler: MicroBatchSampler,
    networks: Networks,
    ranks: Ranks,
) -> None:
    """Log data, networks and batches of the run."""
    accumulation, batch = config.meta.accumulation_steps, config.data.batch_size
    parameters = {
        name: sum(p.numel() for p in getattr(networks, name).parameters())
        for name in ("encoder", "predictor")
    }
    rois, patches = config.grid
    global_batch = batch * accumulation * ranks.world_size
    left_out = len(dataset) * config.data.repeats - sampler.steps_per_epoch * global_batch
    logger.info(
        "%s: %d training runs x %d clips = %d clips per epoch, %d held-out clips, from %s; "
        "normalization: %s",
        dataset.folder.atlas,
        len(dataset),
        config.data.repeats,
        len(dataset) * config.data.repeats,
        n_held_out,
        config.data.data_dir,
        dataset.clip_input.describe_values(),
    )
    _describe_time(config, dataset)
    logger.info(
        "%s: encoder %s parameters, predictor %s; %d ROIs x %d patches = %d tokens",
        config.meta.model_name,
        millions(parameters["encoder"]),
        millions(parameters["predictor"]),
        rois,
        patches,
        rois * patches,
    )
    logger.info(
        "global batch %d = %d per device x %d accumulation steps x %d devices (%s); "
        "%d steps per epoch%s, %d epochs",
        global_batch,
        batch,
        accumulation,
        ranks.world_size,
        ranks.device,
        sampler.steps_per_epoch,
        f" ({left_out} of its clips fill no step)" if left_out else "",
        config.optimization.epochs,
    )


def millions(number: int) -> str:
    """``number`` in millions, or below a tenth of one in thousands."""
    return f"{number / 1e6:.1f} M" if number >= 1e5 else f"{number / 1e3:.1f} k"


def _describe_time(config: Config, dataset: FMRIDataset) -> None:
    """Log the seconds between samples; striding does not make them equal over runs."""
    frames, patch = config.data.crop_size[1], config.mask.patch_size
    intervals = sorted(set(dataset.sample_intervals.round(4).tolist()))
    shortest, longest = intervals[0], intervals[-1]
    seconds = f"{shortest:g}" if len(intervals) == 1 else f"{shortest:g} to {longest:g}"
    logger.info(
        "a sample every %s s: %d frames are %.0f s, a patch of %d is %.0f s",
        seconds,
        frames,
        frames * longest,
        patch,
        patch * longest,
    )
    if len(intervals) > 1:
        logger.warning("runs of different TR are mixed; data.target_tr would bring them to one")
    if longest > SLOWEST_SAMPLING:
        logger.warning(
            "a sample every %g s is slow for BOLD; is meta.downsample (every third frame, meant "
            "for a TR of about 0.7 s) right for these data?",
            longest,
        )


def _describe_memory(
    config: Config, networks: Networks, masks: Sequence[MaskBatch], ranks: Ranks
) -> None:
    """Log the estimated memory of a training step, and warn if it does not fit.

    Activations are those that the encoder keeps of the context and the predictor of context and
    targets, for the largest of ``masks``, or, if that is more, those that pass through the target
    encoder, which sees all tokens and keeps none.
    """
    bfloat16 = config.meta.use_bfloat16 and has_bfloat16(ranks.device)

    def of(network: nn.Module, blocks: nn.ModuleList, tokens: int) -> Blocks:
        return Blocks.from_modules(
            blocks,
            config.data.batch_size,
            tokens,
            bias=network.attention_bias,
            bfloat16=bfloat16,
            recompute=config.meta.gradient_checkpointing,
        )

    encoder, predictor = networks.encoder, networks.predictor
    target_encoder = networks.target_encoder
    kept = []
    for batch in masks:
        context, hidden = batch.seen.shape[1], batch.targets.shape[1]
        seeing = of(encoder, encoder.blocks, context)
        guessing = of(predictor, predictor.predictor_blocks, context + hidden)
        kept.append(seeing.activations() + guessing.activations())
    target = of(target_encoder, target_encoder.blocks, math.prod(config.grid))
    MemoryEstimate.from_modules(
        [encoder, predictor],
        [target_encoder],
        max(*kept, target.passing()),
    ).report(
        ranks.device,
        ranks.world_size,
        "Lower data.batch_size (and raise meta.accumulation_steps), or set "
        "meta.gradient_checkpointing=true.",
    )
