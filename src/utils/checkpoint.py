"""Checkpoint files: written whole or not at all, read without executing anything (spec 4, 8.5).

A file is the release's dict - ``encoder``, ``predictor``, ``target_encoder`` with ``module.``
before each name, ``opt``, ``scaler``, ``epoch``, ``loss``, ``batch_size``, ``world_size``, ``lr`` -
plus ``step``, ``config``, ``rng``, ``normalization``, ``gradients``, ``roi_labels``, ``atlas`` and
``revision``, so that one file is enough to resume, and enough downstream.
"""

import argparse
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.utils.errors import UserError
from src.utils.files import replacing

PREFIX = "module."
FOREIGN_CLASS = re.compile(r"[Uu]nsupported (?:global: )?(?:GLOBAL|class) (\S+)")  # PyTorch's words
# All that unpickling arbitrary bytes was seen to raise; executing nothing, it has no other effect.
UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, MemoryError),
    *(ValueError, LookupError, TypeError, AttributeError, AssertionError),
)
NETWORKS = ("encoder", "predictor", "target_encoder")


def checkpoint_path(folder: str | Path, tag: str, epoch: int | None = None) -> Path:
    """``<tag>-latest.pth.tar``, or ``<tag>-ep<N>.pth.tar``: the state after N epochs (spec 8.5)."""
    name = "latest" if epoch is None else f"ep{epoch}"
    return Path(folder) / f"{tag}-{name}.pth.tar"


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` so that ``path`` always holds a whole checkpoint, the old one or the new."""
    try:
        with replacing(path) as file:
            torch.save(dict(state), file)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); what was there before is untouched."
        ) from error


def load_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this project or of the release, executing nothing in it.

    The one class allowed besides tensors and plain types is ``argparse.Namespace``, which the
    release's fine-tuned files hold. A missing, truncated or foreign file is a :class:`UserError`.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a checkpoint; name a file in it.")
    if not path.is_file():
        others = sorted(p.name for p in path.parent.glob("*.pth*")) if path.parent.is_dir() else []
        there = f" In that folder: {', '.join(others)}." if others else ""
        raise UserError(f"no checkpoint {path}.{there}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location=map_location, weights_only=True)
    except UNREADABLE as error:
        foreign = FOREIGN_CLASS.search(str(error))
        if foreign:
            raise UserError(
                f"checkpoint {path} holds {foreign[1]}, which is neither a tensor nor a plain "
                "value; nothing in it was executed."
            ) from error
        raise UserError(
            f"checkpoint {path} cannot be read ({path.stat().st_size} bytes): it is truncated, or "
            "not a checkpoint."
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(state).__name__}.")
    return state


def require_keys(state: Mapping[str, Any], keys: Iterable[str], path: str | Path) -> None:
    """Raise :class:`UserError` unless the checkpoint has all of ``keys``."""
    missing = [key for key in keys if key not in state]
    if missing:
        raise UserError(
            f"checkpoint {path} has no {', '.join(missing)}; it has: {', '.join(map(str, state))}."
        )


def network_state(network: nn.Module) -> dict[str, Tensor]:
    """State dict of a network under the release's names."""
    return {PREFIX + name: value for name, value in network.state_dict().items()}


def load_network(
    network: nn.Module, state: Mapping[str, Tensor], path: str | Path, part: str
) -> None:
    """Load ``state`` strictly; a mismatch is a :class:`UserError` naming the first differences."""
    state = {name.removeprefix(PREFIX): value for name, value in state.items()}
    own = network.state_dict()
    wrong = [f"{n} is missing" for n in own if n not in state]
    wrong += [f"{n} is not in the model" for n in state if n not in own]
    wrong += [
        f"{n} is {tuple(state[n].shape)}, the model needs {tuple(own[n].shape)}"
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise UserError(
            f"checkpoint {path} does not fit this {part}: {'; '.join(wrong[:3])}{more}. "
            "Check model_name, crop_size, patch_size, pred_depth, pred_emb_dim and add_w."
        )
    network.load_state_dict(state, strict=True)
