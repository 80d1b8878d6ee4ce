"""Features of a frozen encoder: computed once per clip, stored, and found again.

A stored array is named after a hash of everything it depends on (weights, clips, input, pooling),
so that another probe, seed or head costs no pass through the encoder, and a changed checkpoint or
data set never meets old features. Arrays are written batch by batch and read as memory maps.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from downstream_tasks.cohort.clips import ExampleClips
from downstream_tasks.features.pooling import pool
from downstream_tasks.features.registry import REGISTRY
from src.models.vision_transformer import VisionTransformer
from src.utils.files import replacing, write_text
from src.utils.loading import batches_of
from src.utils.precision import autocast
from src.utils.progress import progress_bar

_TOKEN_DTYPE = "float16"  # layer-normed tokens are of order 1; half the disk of float32

logger = logging.getLogger(__name__)


class FeatureStore:
    """Arrays in a folder, each beside a JSON of the key that it belongs to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(
        self,
        key: Mapping[str, Any],
        shape: tuple[int, ...],
        dtype: str,
        batches: Callable[[], Iterator[np.ndarray]],
    ) -> np.ndarray:
        """The array of ``key``, read-only; ``batches`` yields it row by row if it is not there."""
        text = json.dumps(key, sort_keys=True, indent=1)
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npy"
        if path.exists():
            logger.info("features found: %s", path)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for batch in batches():
                    file.write(np.ascontiguousarray(batch, dtype=dtype).tobytes())
            write_text(path.with_suffix(".json"), text)
        return np.load(path, mmap_mode="r")


def encode_clips(
    encoder: VisionTransformer,
    clips: ExampleClips,
    store: FeatureStore,
    *,
    level: str = "pooled",
    patch: int | None = None,
    control: str = "none",
    device: torch.device,
    batch_size: int = 16,
    num_workers: int = 0,
    bfloat16: bool = False,
    label: str = "encoder",
) -> np.ndarray:
    """Frozen features of every clip.

    Args:
        level: the mean of all tokens ("pooled", ``[n_clips, D]``), the mean of each ROI's ("roi",
            ``[n_clips, R, D]``) or every token ("token", ``[n_clips, N, D]``, float16).
        patch: only the tokens of this time patch (the scored one).
        control: name of the entry that says what the encoder sees in place of the clip.
        label: of the progress bar.
    """
    grid = encoder.num_patches_2d
    patches = grid[1] if patch is None else 1
    per_clip = {"pooled": (), "roi": (grid[0],), "token": (grid[0] * patches,)}[level]
    shape = (len(clips), *per_clip, encoder.embed_dim)
    key = {
        "weights": weights_digest(encoder),
        "clips": clips.identity(),
        "level": level,
        "patch": patch,
        "control": control,
        "bfloat16": bfloat16,
    }

    @torch.inference_mode()
    def encode() -> Iterator[np.ndarray]:
        model = encoder.to(device).eval()
        precision = autocast(device, bfloat16)
        loader = DataLoader(clips, batch_size, num_workers=num_workers)
        with batches_of(loader) as batches:
            for batch in progress_bar(
                batches, total=len(loader), desc=label, unit="batch", leave=False
            ):
                x = apply_control(batch["fmri"], batch["item"], control).to(device)
                with precision():
                    encoded = model(x).float()
                yield select_tokens(encoded, grid, patch, level).cpu().numpy()

    return store.get(key, shape, _TOKEN_DTYPE if level == "token" else "float32", encode)


def apply_control(fmri: Tensor, items: Tensor, control: str) -> Tensor:
    """What the encoder is shown for clips ``[B, 1, R, T]``; permutations depend on the item."""
    return fmri if control == "none" else REGISTRY[control].function(fmri, items)


def select_tokens(encoded: Tensor, grid: tuple[int, int], patch: int | None, level: str) -> Tensor:
    """Tokens ``[B, N, D]``, or those of one time patch, at a level of :func:`embed.pool`."""
    if patch is not None:
        # Tokens are ROI-major (method 1).
        encoded, grid = encoded.unflatten(1, grid)[:, :, patch], (grid[0], 1)
    return pool(encoded, level, grid)


def weights_digest(encoder: VisionTransformer) -> str:
    """Hash of all parameters and buffers, the gradients among them, under their names."""
    digest = hashlib.sha256(str((encoder.num_patches_2d, encoder.num_heads)).encode())
    for name, value in [*encoder.named_parameters(), *encoder.named_buffers()]:
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def mean_over_clips(features: np.ndarray, clips_per_example: int) -> np.ndarray:
    """Features ``[n_examples * k, ...]`` of k clips each to ``[n_examples, F]``."""
    flat = features.reshape(len(features), -1)
    return flat.reshape(-1, clips_per_example, flat.shape[1]).mean(axis=1)
