"""The content of a pretraining checkpoint; its keys are defined here only (method 4)."""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import Config, config_from_dict
from .datasets.fmri import FMRIDataset
from .datasets.folder.fingerprint import runs_fingerprint
from .datasets.input_profile import InputProfile
from .datasets.normalization import STATISTICS
from .models.jepa import Networks
from .models.pos_embed import GRADIENTS
from .utils.checkpoint import (
    NETWORKS,
    PREFIX,
    CheckpointWriter,
    checkpoint_path,
    find_checkpoint,
    load_checkpoint,
    load_network,
    network_state,
    on_host,
    require_keys,
)
from .utils.distributed import Ranks
from .utils.errors import UserError
from .utils.yaml_config import differences

# What may differ between a run and its continuation without changing the result's meaning.
FREE_TO_CHANGE = {
    "logging",
    "data.batch_size",  # its product with the number of devices must stay
    "data.data_dir",
    "data.how_to_make",
    "data.gradient_csv_path",
    "data.num_workers",
    "data.pin_mem",
    "meta.load_checkpoint",
    "meta.read_checkpoint",
    "meta.init_from",
    "meta.compile",
    "meta.gradient_checkpointing",
    "meta.attn_mode",
}
MOST_NAMES = 10  # of people in one message


@dataclass
class PretrainState:
    """A run of pretraining: what it is, how far it is and, in a file, its weights.

    A file holds the keys of the release's dictionary and, in addition, those after ``lr``: all that
    resuming and the downstream tasks need.

    Attributes:
        encoder, predictor, target_encoder, opt: weights under the release's names, and the
            optimizer's state; empty unless the state was just read.
        scaler: a key of the release; there is no gradient scaler here (method 8.11).
        epoch, step: epochs and optimizer steps done.
        loss: of the last step, over all processes; ``lr``: its learning rate.
        batch_size, world_size: clips per device and micro-step, devices.
        rng: random state of the main process; what training draws is a function of the step anyway.
        monitors: measurements on held-out people: ``untrained``, of random weights, ``first``,
            before the first step, and ``last``.
        config: the whole configuration, in plain types.
        normalization, sampling: :meth:`src.datasets.clip_input.ClipInput.to_state`.
        input_profile: what its clips look like, :class:`src.datasets.input_profile.InputProfile`.
        roi_labels, atlas: the ROIs in their order.
        n_clips: runs that clips are cut from.
        training_people: their sorted participant ids.
        runs_fingerprint: of these runs, :func:`src.datasets.folder.fingerprint.runs_fingerprint`.
        targets: running statistics of centred targets (:class:`CenteredTargets`), else empty.
        begun_from: ``file`` and ``step`` of the ``read_checkpoint`` that the run went on from.
        revision: of the code.
        path: the file that the state was read from; not in the file.
    """

    config: dict[str, Any]
    normalization: dict[str, Any]
    sampling: dict[str, Any]
    input_profile: dict[str, Any]
    roi_labels: list[str]
    atlas: str
    n_clips: int
    training_people: list[str]
    runs_fingerprint: str
    batch_size: int
    world_size: int
    revision: str | None
    encoder: dict[str, Tensor] = field(default_factory=dict)
    predictor: dict[str, Tensor] = field(default_factory=dict)
    target_encoder: dict[str, Tensor] = field(default_factory=dict)
    opt: dict[str, Any] = field(default_factory=dict)
    scaler: None = None
    epoch: int = 0
    loss: float = math.nan
    lr: float = math.nan
    step: int = 0
    rng: dict[str, Tensor] = field(default_factory=dict)
    monitors: dict[str, dict[str, Any]] = field(default_factory=dict)
    targets: dict[str, Tensor] = field(default_factory=dict, metadata={"optional": True})
    begun_from: dict[str, Any] | None = None
    path: Path | None = field(default=None, metadata={"stored": False})

    @classmethod
    def begin(
        cls,
        config: Config,
        dataset: FMRIDataset,
        ranks: Ranks,
        revision: str | None,
        before: "PretrainState | None" = None,
    ) -> "PretrainState":
        """Describe the run of ``config`` on ``dataset``, as far as the state ``before`` got."""
        progress = {}
        if before is not None:
            names = ("epoch", "step", "loss", "lr", "monitors", "begun_from", "path")
            progress = {name: getattr(before, name) for name in names}
        return cls(
            config=config.to_dict(),
            **dataset.clip_input.to_state(),
            input_profile=InputProfile.from_dataset(dataset).to_dict(),
            roi_labels=list(dataset.folder.roi_labels),
            atlas=dataset.folder.atlas,
            n_clips=len(dataset),
            training_people=_people(dataset),
            runs_fingerprint=runs_fingerprint(dataset.folder, dataset.rows),
            batch_size=config.data.batch_size,
            world_size=ranks.world_size,
            revision=revision,
            **progress,
        )

    @classmethod
    def load(cls, path: str | Path) -> "PretrainState":
        """Read a checkpoint that a run can go on from; :class:`UserError` if this is none."""
        path = Path(path)
        stored = load_checkpoint(path)
        require_keys(stored, NETWORKS, path)
        if "step" not in stored or not isinstance(stored.get("config"), dict):
            raise UserError(
                f"checkpoint {path} was not written by this project: it holds weights but neither "
                "config nor step, so a run cannot be resumed from it. To begin a new run with its "
                f"weights: meta.init_from={path}"
            )
        keys = _stored_keys()
        require_keys(stored, [key for key in keys if key not in _OPTIONAL], path)
        return cls(**{key: stored[key] for key in keys if key in stored}, path=path)

    @property
    def gradients(self) -> Tensor | None:
        """ROI features ``[R, G]`` of a state just read; ``None`` for ``add_w: origin``."""
        stored = self.encoder.get(PREFIX + GRADIENTS)
        return None if stored is None else stored[0].clone()

    @property
    def stats(self) -> dict[str, Tensor] | None:
        """``median`` and ``iqr`` of the robust normalisation."""
        held = self.normalization
        return {name: held[name] for name in STATISTICS if name in held} or None

    def check_same_run(self, config: Config, world_size: int) -> None:
        """Raise :class:`UserError` unless ``config`` describes this run.

        ``batch_size`` and the number of devices may change together, as long as their product,
        which decides what each step sees, stays. A key that is younger than the checkpoint has its
        default there.
        """
        stored = config_from_dict(self.config, "the checkpoint's config").to_dict()
        found = differences(config.to_dict(), stored, FREE_TO_CHANGE)
        here, there = config.data.batch_size * world_size, self.batch_size * self.world_size
        if here != there:
            found.append(f"data.batch_size x devices is {here}, was {there}")
        if found:
            raise UserError(
                f"cannot resume from {self.path}: the config differs where it matters: "
                f"{'; '.join(found)}. Use the checkpoint's values, or another logging.folder."
            )

    def check_same_data(self, dataset: FMRIDataset) -> None:
        """Raise :class:`UserError` unless ``dataset`` holds the runs that this one trained on."""
        refused, data = f"cannot resume from {self.path}", dataset.folder.path
        if self.roi_labels != list(dataset.folder.roi_labels):
            raise UserError(f"{refused}: its ROIs are not those of the data, in order.")
        if self.n_clips != len(dataset):
            raise UserError(
                f"{refused}: it was trained on {self.n_clips} clips, and {data} has "
                f"{len(dataset)} for training. Use the data it began with."
            )
        here, there = set(_people(dataset)), set(self.training_people)
        if here != there:
            raise UserError(
                f"{refused}: it was trained on other people. Not in the training split of {data}: "
                f"{_names(there - here)}. There, but not in the checkpoint: "
                f"{_names(here - there)}. Use the data it began with."
            )
        if self.runs_fingerprint != runs_fingerprint(dataset.folder, dataset.rows):
            raise UserError(
                f"{refused}: {data} has the same people for training, but other runs of them, "
                "other values, or another order. Use the data it began with."
            )

    def restore(self, networks: Networks, optimizer: torch.optim.Optimizer) -> None:
        """Load weights, optimizer and random state into the run; free those held here."""
        for part in NETWORKS:
            load_network(getattr(networks, part), getattr(self, part), self.path, part)
        if networks.centering is not None:
            load_network(networks.centering, self.targets, self.path, "mean of the targets")
        optimizer.load_state_dict(self.opt)
        torch.set_rng_state(self.rng["torch"].cpu())
        if torch.cuda.is_available() and "cuda" in self.rng:
            torch.cuda.set_rng_state(self.rng["cuda"].cpu())
        self.encoder, self.predictor, self.target_encoder, self.opt = {}, {}, {}, {}
        self.targets = {}

    def save(
        self,
        writer: CheckpointWriter,
        networks: Networks,
        optimizer: torch.optim.Optimizer,
        keep: bool,
    ) -> None:
        """Copy the state to the host and have it written; with ``keep`` as the epoch's file too.

        Raises:
            UserError: if the checkpoint before could not be written.
        """
        writer.wait()  # so that there is one copy at most
        now = {key: getattr(self, key) for key in _stored_keys()}
        now |= {part: network_state(getattr(networks, part)) for part in NETWORKS}
        if networks.centering is not None:
            now["targets"] = networks.centering.state_dict()
        now |= {"opt": optimizer.state_dict(), "rng": _rng_state()}
        writer.write(on_host(now), self.epoch if keep else None)


def state_to_go_on_from(config: Config, resume: bool) -> PretrainState | None:
    """Return the state that a run continues; ``None`` for a new one.

    That is the latest checkpoint of ``logging.folder``, or the one that ``read_checkpoint`` names
    (a path, or a name in that folder), unless the latest is of a run that went on from it: a
    scheduler that starts the same command again must not begin again.

    Raises:
        UserError: if it cannot be read, or the folder holds a run that nothing asks to go on with.
    """
    latest = checkpoint_path(config.logging.folder, config.logging.write_tag)
    if not (resume or config.meta.load_checkpoint):
        if there := _checkpoints_of(config):
            named = "" if there[-1] == latest else f" meta.read_checkpoint={there[-1].name}"
            raise UserError(
                f"{latest.parent} already holds a run ({there[-1].name}). Go on with it by "
                f"--resume{named}, or write elsewhere: logging.folder=..."
            )
        return None
    if config.meta.init_from is not None and not latest.exists():
        raise UserError(
            f"meta.init_from begins a new run, and {latest.parent} holds none to go on with. Leave "
            "out --resume (and meta.load_checkpoint) for the first start."
        )
    named = config.meta.read_checkpoint
    if named is None:
        if not latest.exists():
            kept = sorted(path.name for path in latest.parent.glob("*.pth*"))
            there = f" (there are {', '.join(kept)})" if kept else ""
            raise UserError(
                f"no checkpoint {latest} to go on from. Begin a run without --resume (and "
                f"meta.load_checkpoint), or name a checkpoint by meta.read_checkpoint=FILE{there}."
            )
        return PretrainState.load(latest)
    path = Path(named) if Path(named).exists() else latest.parent / named
    path = find_checkpoint(path)
    identity = path.name if _same_place(path.parent, latest.parent) else str(path.resolve())
    if latest.exists():
        state = PretrainState.load(latest)
        begun_from = (state.begun_from or {}).get("file")
        if identity in (latest.name, begun_from):
            return state
        del state  # before the other is read
    state = PretrainState.load(path)
    state.begun_from = {"file": identity, "step": state.step}
    return state


def _checkpoints_of(config: Config) -> list[Path]:
    """Checkpoints of a run in ``logging.folder``: oldest epoch first, the latest last."""
    folder, tag = Path(config.logging.folder), config.logging.write_tag
    epochs = [path for path in folder.glob("*.pth.tar") if path.name.startswith(f"{tag}-ep")]
    latest = checkpoint_path(folder, tag)
    oldest_first = sorted(epochs, key=lambda path: path.stat().st_mtime_ns)
    return oldest_first + [latest] * latest.exists()


def _same_place(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


# Keys that checkpoints from before they existed do not have.
_OPTIONAL = {f.name for f in fields(PretrainState) if f.metadata.get("optional")}


def _stored_keys() -> list[str]:
    return [f.name for f in fields(PretrainState) if f.metadata.get("stored", True)]


def _people(dataset: FMRIDataset) -> list[str]:
    """Sorted ids of the people whose runs ``dataset`` cuts clips from."""
    return sorted(set(dataset.folder.runs["participant_id"].iloc[dataset.rows]))


def _names(people: set[str]) -> str:
    shown = sorted(people)[:MOST_NAMES]
    more = [f"and {len(people) - len(shown)} more"] if len(people) > len(shown) else []
    return ", ".join([*shown, *more]) or "no one"


def _rng_state() -> dict[str, Tensor]:
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
