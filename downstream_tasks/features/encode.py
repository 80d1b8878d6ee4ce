"""Features of a frozen encoder: computed once per clip, stored, and found again.

A stored array is named after a hash of everything it depends on (weights, clips, input, pooling),
so that another probe, seed or head costs no pass through the encoder, and a changed checkpoint or
data set never meets old features. Arrays are written batch by batch and read as memory maps.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from downstream_tasks.cohort.clips import ExampleClips
from downstream_tasks.features.controls import ShownAs
from downstream_tasks.features.pooling import pool, pooled_shape
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
        wanted: Sequence[tuple[Mapping[str, Any], tuple[int, ...], str]],
        batches: Callable[[Sequence[int]], Iterator[Sequence[np.ndarray]]],
    ) -> list[np.ndarray]:
        """The arrays of ``wanted`` (key, shape, dtype), as read-only memory maps.

        Those that are not there are written together: ``batches`` is given their places in
        ``wanted`` and yields a few rows of each of them at a time.
        """
        texts = [json.dumps(key, sort_keys=True, indent=1) for key, _, _ in wanted]
        paths = [
            self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npy" for text in texts
        ]
        missing = [place for place, path in enumerate(paths) if not path.exists()]
        for place, path in enumerate(paths):
            if place not in missing:
                logger.info("features found: %s", path)
        if missing:
            self.folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                files = [stack.enter_context(replacing(paths[place])) for place in missing]
                dtypes = [np.dtype(wanted[place][2]) for place in missing]
                for place, file, dtype in zip(missing, files, dtypes, strict=True):
                    shape = wanted[place][1]
                    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                for arrays in batches(missing):
                    for file, dtype, array in zip(files, dtypes, arrays, strict=True):
                        file.write(np.ascontiguousarray(array, dtype=dtype).tobytes())
            for place in missing:
                write_text(paths[place].with_suffix(".json"), texts[place])
        return [np.load(path, mmap_mode="r") for path in paths]


def encode_clips(
    encoder: VisionTransformer,
    clips: ExampleClips,
    store: FeatureStore,
    *,
    levels: Sequence[str] = ("pooled",),
    patch: int | None = None,
    control: str = "none",
    device: torch.device,
    batch_size: int = 16,
    num_workers: int = 0,
    bfloat16: bool = False,
    label: str = "encoder",
) -> list[np.ndarray]:
    """Frozen features of every clip at ``levels``, all from one pass of the encoder.

    Args:
        levels: names of :data:`pooling.LEVELS`, each with an array ``[n_clips, ...]`` in float32;
            that of every token ("token", ``[n_clips, N, D]``) is in float16.
        patch: only the tokens of this time patch (the scored one).
        control: name of the entry that says what the encoder sees in place of the clip.
        label: of the progress bar.
    """
    grid = encoder.num_patches_2d
    kept = (grid[0], grid[1] if patch is None else 1)
    key = {
        "weights": weights_digest(encoder),
        "clips": clips.identity(),
        "patch": patch,
        "control": control,
        "bfloat16": bfloat16,
    }

    wanted = [
        (
            key | {"level": level},
            (len(clips), *pooled_shape(level, kept, encoder.embed_dim)),
            _TOKEN_DTYPE if level == "token" else "float32",
        )
        for level in levels
    ]

    @torch.inference_mode()
    def encode(missing: Sequence[int]) -> Iterator[list[np.ndarray]]:
        model = encoder.to(device).eval()
        precision = autocast(device, bfloat16)
        shown = None if control == "none" else REGISTRY[control].function
        loader = DataLoader(clips, batch_size, num_workers=num_workers, collate_fn=ShownAs(shown))
        with batches_of(loader) as batches:
            for batch in progress_bar(
                batches, total=len(loader), desc=label, unit="batch", leave=False
            ):
                with precision():
                    encoded = model(batch["fmri"].to(device)).float()
                tokens = tokens_of_patch(encoded, grid, patch)
                yield [pool(tokens, levels[i], kept).cpu().numpy() for i in missing]

    return store.get(wanted, encode)


def tokens_of_patch(tokens: Tensor, grid: tuple[int, int], patch: int | None) -> Tensor:
    """Tokens ``[B, N, D]``, or those of one time patch, ``[B, R, D]``."""
    # Tokens are ROI-major (method 1).
    return tokens if patch is None else tokens.unflatten(1, grid)[:, :, patch]


def weights_digest(encoder: VisionTransformer) -> str:
    """Hash of all parameters and buffers, the gradients among them, under their names."""
    digest = hashlib.sha256(str((encoder.num_patches_2d, encoder.num_heads)).encode())
    for name, value in [*encoder.named_parameters(), *encoder.named_buffers()]:
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def mean_over_clips(features: np.ndarray, clips_per_example: int) -> np.ndarray:
    """Features ``[n_examples * k, ...]`` of k clips each to ``[n_examples, F]``.

    Those of one clip each are returned as they are: a memory map stays one.
    """
    flat = features.reshape(len(features), -1)
    if clips_per_example == 1:
        return flat
    return flat.reshape(-1, clips_per_example, flat.shape[1]).mean(axis=1)
