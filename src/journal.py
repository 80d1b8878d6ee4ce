"""What a run says while it goes on: its description, its steps, its monitors."""

import logging

from tqdm import tqdm

from src.config import Config
from src.datasets.fmri import FMRIDataset
from src.datasets.sampler import MicroBatchSampler
from src.helper import Networks
from src.utils.distributed import Ranks
from src.utils.logging import RunLog

logger = logging.getLogger(__name__)


def describe(
    config: Config,
    dataset: FMRIDataset,
    held_out: FMRIDataset,
    sampler: MicroBatchSampler,
    networks: Networks,
    ranks: Ranks,
) -> None:
    """Say what is about to be trained on what."""
    accumulation, batch = config.meta.accumulation_steps, config.data.batch_size
    parameters = {
        name: sum(p.numel() for p in getattr(networks, name).parameters()) / 1e6
        for name in ("encoder", "predictor")
    }
    rois, patches = config.grid
    logger.info(
        "%s: %d clips for training, %d held out, from %s",
        dataset.folder.atlas,
        len(dataset),
        len(held_out),
        config.data.data_dir,
    )
    logger.info(
        "%s: encoder %.1f M parameters, predictor %.1f M; %d ROIs x %d patches = %d tokens",
        config.meta.model_name,
        parameters["encoder"],
        parameters["predictor"],
        rois,
        patches,
        rois * patches,
    )
    logger.info(
        "global batch %d = %d per device x %d accumulation steps x %d devices (%s); "
        "%d steps per epoch, %d epochs",
        batch * accumulation * ranks.world_size,
        batch,
        accumulation,
        ranks.world_size,
        ranks.device,
        sampler.steps_per_epoch,
        config.optimization.epochs,
    )


def report_step(row: dict[str, float], step: int, total_steps: int, log: RunLog, bar: tqdm) -> None:
    """One line of the log, TensorBoard and the progress bar."""
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
    names = ("loss", "grad_norm", "lr", "weight_decay", "momentum", "time (ms)")
    log.scalars({f"train/{name}": row[name] for name in names}, step)


def report_monitors(values: dict[str, float], step: int, log: RunLog) -> None:
    """What held-out people say, in the log and TensorBoard."""
    logger.info(
        "held-out people after step %d: R2 %+.4f variance %.4g (%.1f %% of the total) RankMe %.1f",
        step,
        values["r2"],
        values["variance"],
        100 * values["variance_share"],
        values["rankme"],
    )
    log.scalars({f"monitor/{name}": value for name, value in values.items()}, step)
