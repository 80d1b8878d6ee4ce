"""Embeddings of the runs of a data-set folder, to a file: `downstream_eval.py embed`.

One row per clip, with participant, session, run and clip number; the clips are resampled and
normalised as the checkpoint says. Batches are written as they come
(:mod:`downstream_tasks.features.embedding_files`), so size does not matter.
"""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from downstream_tasks.features.embedding_files import SUFFIXES, Embeddings, writer_of
from downstream_tasks.features.pooling import LEVELS, pool, pooled_shape
from src.datasets.clip_input import BAD_ROIS, SHORT_RUNS, ClipInput
from src.datasets.fmri import FMRIDataset
from src.datasets.folder import DataFolder
from src.datasets.folder.format import SPLITS
from src.datasets.normalization import GLOBAL_SIGNAL, METHODS
from src.pretrained.arguments import add_checkpoint_arguments, load_from_arguments
from src.pretrained.encoder import Pretrained
from src.utils.distributed import default_devices, parse_devices
from src.utils.errors import UserError
from src.utils.loading import batches_of
from src.utils.precision import autocast
from src.utils.progress import progress_bar

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``downstream_eval.py embed``."""
    add_checkpoint_arguments(parser)
    parser.add_argument("--data_path", required=True, help="data-set folder (data/README.md)")
    parser.add_argument("--out", required=True, help="file to write: .npz, .parquet, .csv, .tsv")
    parser.add_argument(
        "--level",
        default="pooled",
        choices=LEVELS,
        help="mean of all tokens [D], mean of each ROI's tokens [R, D], their correlations "
        "between ROIs [R (R - 1) / 2], or every token [N, D]",
    )
    parser.add_argument("--split", nargs="+", default=list(SPLITS), choices=SPLITS, metavar="SPLIT")
    parser.add_argument(
        "--clips", type=int, default=1, help="clips spread evenly over a run; 1 is the centre"
    )
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--device", default=None, help="cpu, cuda:N or mps; default: the best")
    parser.add_argument(
        "--bfloat16", action="store_true", help="compute in bfloat16 where the device has it"
    )
    parser.add_argument("--short_runs", default="error", choices=SHORT_RUNS)
    parser.add_argument("--bad_rois", default="exclude", choices=BAD_ROIS)
    unlike = parser.add_argument_group(
        "input", "what the checkpoint says unless given; needed for the release's, which do not say"
    )
    unlike.add_argument("--normalization", choices=METHODS)
    unlike.add_argument(
        "--clip_sd",
        type=limit,
        default="checkpoint",
        metavar="NUMBER",
        help="clamp normalised values to +-it, or none",
    )
    unlike.add_argument("--global_signal", choices=GLOBAL_SIGNAL, default="checkpoint")
    unlike.add_argument("--stride", type=int, help="take every n-th frame")
    unlike.add_argument("--target_tr", type=float, help="resample to this TR in seconds")


def run(arguments: argparse.Namespace) -> Path:
    """Write the file; return its path.

    Raises:
        UserError: on a checkpoint or folder that cannot be read or do not fit each other, and on
            an output of another kind.
    """
    out = Path(arguments.out)
    if out.suffix not in SUFFIXES:
        raise UserError(f"--out {out}: the name must end in {', '.join(SUFFIXES)}.")
    for name in ("clips", "batch_size"):
        if (value := getattr(arguments, name)) < 1:
            raise UserError(f"--{name} is {value}, it must be at least 1.")
    (device,) = parse_devices([arguments.device or default_devices()[0]])
    pretrained = load_from_arguments(arguments)
    if note := pretrained.check_folder(DataFolder(arguments.data_path)):
        logger.warning("%s", note)
    names = (
        "normalization", "clip_sd", "global_signal", "stride", "target_tr",
        "short_runs", "bad_rois",
    )  # fmt: skip
    clip_input = pretrained.clip_input.changed(**{name: vars(arguments)[name] for name in names})
    check_known(clip_input, pretrained.path)
    dataset = FMRIDataset(arguments.data_path, arguments.split, clip_input, clips=arguments.clips)
    shape = embedding_shape(pretrained, arguments.level)
    write = writer_of(out, Embeddings(dataset, arguments.level, shape, pretrained.path))
    if note := pretrained.clip_note(dataset):
        logger.warning("%s", note)
    batches = embed(
        pretrained,
        dataset,
        arguments.level,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        device=device,
        bfloat16=arguments.bfloat16,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write(batches)
    logger.info("%s: %d clips, %s", out, len(dataset), arguments.level)
    return out


def limit(text: str) -> float | str | None:
    """``8``, ``none`` or ``checkpoint``, of a flag."""
    if text in ("none", "checkpoint"):
        return None if text == "none" else text
    return float(text)


def check_known(clip_input: ClipInput, path: Path) -> None:
    """Raise :class:`UserError` if neither checkpoint nor flags say how a run becomes a clip."""
    known = (
        ("--normalization", clip_input.normalization),
        ("--stride or --target_tr", clip_input.sampling),
    )
    if missing := [flag for flag, value in known if value is None]:
        raise UserError(
            f"the checkpoint {path} does not say how its input was prepared. Give "
            f"{' and '.join(missing)} (the paper: zscore_sample downstream; every third frame of "
            "multiband data, else every frame)."
        )


@torch.inference_mode()
def embed(
    pretrained: Pretrained,
    dataset: FMRIDataset,
    level: str,
    *,
    batch_size: int,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    bfloat16: bool = False,
) -> Iterator[np.ndarray]:
    """Embeddings of the clips of ``dataset`` in order, a batch at a time, float32 ``[B, ...]``."""
    device = torch.device(device)
    encoder = pretrained.encoder.to(device)
    precision = autocast(device, bfloat16)
    loader = DataLoader(dataset, batch_size, num_workers=num_workers)
    with batches_of(loader) as batches:
        for batch in progress_bar(batches, total=len(loader), desc="embed", unit="batch"):
            with precision():
                tokens = encoder(batch["fmri"].to(device, non_blocking=True))
            yield pool(tokens.float(), level, pretrained.encoder_spec.grid).cpu().numpy()


def embedding_shape(pretrained: Pretrained, level: str) -> tuple[int, ...]:
    """Shape of one clip's embedding."""
    spec = pretrained.encoder_spec
    return pooled_shape(level, spec.grid, spec.embed_dim)
