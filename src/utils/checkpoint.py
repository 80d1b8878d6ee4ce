"""Checkpoint files: written whole or not at all, read without executing anything (method 4, 8.5).

What a file of pretraining holds is in :mod:`src.pretrain_state`.
"""

import argparse
import logging
import os
import pickle
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from .errors import UserError, as_user_error
from .files import replacing

logger = logging.getLogger(__name__)

PREFIX = "module."
FOREIGN_CLASS = re.compile(r"[Uu]nsupported (?:global: )?(?:GLOBAL|class) (\S+)")  # PyTorch's words
# All that unpickling arbitrary bytes was seen to raise; executing nothing, it has no other effect.
UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, MemoryError),
    *(ValueError, LookupError, TypeError, AttributeError, AssertionError),
)
NETWORKS = ("encoder", "predictor", "target_encoder")


def checkpoint_path(folder: str | Path, tag: str, epoch: int | None = None) -> Path:
    """``<tag>-latest.pth.tar``; ``<tag>-ep<N>.pth.tar``: the state after N epochs (method 8.5)."""
    name = "latest" if epoch is None else f"ep{epoch}"
    return Path(folder) / f"{tag}-{name}.pth.tar"


def find_checkpoint(path: str | Path, epoch: int | None = None) -> Path:
    """Return the file itself, or the checkpoint of a run's folder.

    In a folder that is the latest, or that of ``epoch``; where there is no latest, the newest
    epoch's, and the log says so.

    Raises:
        UserError: if the folder has none, or files of several runs.
    """
    path = Path(path)
    if not path.is_dir():
        named = re.search(r"-ep(\d+)\.pth", path.name)
        if epoch is not None and named and int(named[1]) != epoch:
            raise UserError(
                f"load_epoch is {epoch}, but load_path names the epoch {named[1]}: {path}. "
                "Drop one of them, or give the folder as load_path."
            )
        return path
    name = "latest" if epoch is None else f"ep{epoch}"
    found = sorted(path.glob(f"*-{name}.pth.tar"))
    if not found and epoch is None:
        found = _newest_epoch(path)
    if len(found) != 1:
        there = ", ".join(sorted(p.name for p in path.glob("*.pth*"))) or "none"
        raise UserError(
            f"{path} has {len(found)} checkpoints named *-{name}.pth.tar; it must be one. "
            f"Checkpoints there: {there}. Name the file as load_path."
        )
    return found[0]


def _newest_epoch(folder: Path) -> list[Path]:
    """The checkpoints of the highest epoch in ``folder``."""
    epochs = {
        path: int(match[1])
        for path in sorted(folder.glob("*.pth.tar"))
        if (match := re.search(r"-ep(\d+)\.pth\.tar$", path.name))
    }
    newest = [path for path, epoch in epochs.items() if epoch == max(epochs.values())]
    if len(newest) == 1:
        logger.info(
            "%s has no latest checkpoint: using %s, the newest of %d",
            folder,
            newest[0].name,
            len(epochs),
        )
    return newest


def remove_leftovers(folder: str | Path, tag: str) -> None:
    """Remove what checkpoints of ``tag`` left half written when their process was killed."""
    name = re.compile(rf"\.{re.escape(tag)}-(latest|ep\d+)\.pth\.tar\.[0-9a-f]{{32}}")
    for path in Path(folder).iterdir():
        if name.fullmatch(path.name):
            path.unlink()


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` so that ``path`` always holds a whole checkpoint, the old one or the new."""
    try:
        with replacing(path) as file:
            torch.save(dict(state), file)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: str | Path, error: OSError) -> UserError:
    return as_user_error(error) or UserError(
        f"{path} cannot be written ({error.strerror}); what was there before is untouched."
    )


def _keep(path: Path, kept: Path) -> None:
    """Give the file ``path`` the second name ``kept``; copy it where the file system cannot."""
    temporary = kept.with_name(f".{kept.name}.{uuid4().hex}")
    try:
        os.link(path, temporary)
    except OSError:
        with replacing(kept) as file, path.open("rb") as source:
            shutil.copyfileobj(source, file)
        return
    temporary.replace(kept)


class CheckpointWriter:
    """Writer of the checkpoints of one run: one background thread, one file at a time.

    Leaving the block waits for the last of them. A checkpoint that could not be written is a
    :class:`UserError` at the next call of any method.
    """

    def __init__(self, folder: str | Path, tag: str) -> None:
        self.folder, self.tag = Path(folder), tag
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def write(self, state: Mapping[str, Any], epoch: int | None = None) -> None:
        """Begin to write ``state``, which must not change any more, as the latest checkpoint.

        With ``epoch`` that file gets the name of the epoch as well.
        """
        self.wait()
        self._pending = self._thread.submit(self._write, state, epoch)

    def check(self) -> None:
        """Raise what went wrong, if the last write has ended."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Return when the last write has ended; raise what went wrong."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        try:
            self.wait()
        except UserError as failure:
            if error is None:
                raise
            logger.error("%s", failure)  # besides what has ended the run

    def _write(self, state: Mapping[str, Any], epoch: int | None) -> None:
        latest = checkpoint_path(self.folder, self.tag)
        save_checkpoint(latest, state)
        if epoch is not None:
            kept = checkpoint_path(self.folder, self.tag, epoch)
            try:
                _keep(latest, kept)
            except OSError as error:
                raise _cannot_write(kept, error) from error


def load_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this project or of the release, executing nothing in it.

    The one class allowed besides tensors and plain types is ``argparse.Namespace``, which the
    release's fine-tuned files hold. A missing, truncated or foreign file is a :class:`UserError`.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a checkpoint; name a file in it.")
    if not path.is_file():
        raise UserError(f"no checkpoint {path}.{_others(path)}")
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
            f"not a checkpoint. Name another file.{_others(path)}"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(state).__name__}.")
    return state


def _others(path: Path) -> str:
    """Which other checkpoints are beside ``path``, as the end of a message."""
    others = sorted(p.name for p in path.parent.glob("*.pth*") if p.name != path.name)
    return f" In that folder: {', '.join(others)}." if others else ""


def require_keys(state: Mapping[str, Any], keys: Iterable[str], path: str | Path) -> None:
    """Raise :class:`UserError` unless the checkpoint has all of ``keys``."""
    missing = [key for key in keys if key not in state]
    if missing:
        raise UserError(
            f"checkpoint {path} has no {', '.join(missing)}; it has: {', '.join(map(str, state))}."
        )


def on_host(value: Any) -> Any:
    """Copy all tensors in nested dictionaries and lists to the host."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: on_host(item) for key, item in value.items()}
    return [on_host(item) for item in value] if isinstance(value, list) else value


def network_state(network: nn.Module) -> dict[str, Tensor]:
    """State dict of a network under the release's names."""
    return {PREFIX + name: value for name, value in network.state_dict().items()}


def load_network(
    network: nn.Module,
    state: Mapping[str, Tensor],
    path: str | Path,
    part: str,
    may_lack: Collection[str] = (),
) -> None:
    """Load ``state`` strictly; a mismatch is a :class:`UserError` naming the first differences.

    What ``state`` lacks of ``may_lack`` stays as the network has it: the release's files hold no
    gradients (method 4).
    """
    state = {name.removeprefix(PREFIX): value for name, value in state.items()}
    own = network.state_dict()
    state |= {name: own[name] for name in may_lack if name in own and name not in state}
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
            "Check model_name, crop_size, patch_size, pred_depth, pred_emb_dim, add_w, "
            "attention_bias, bias_components and roi_value_rank."
        )
    network.load_state_dict(state, strict=True)
