"""The kinds of checkpoint files with an encoder in them, and one reader for each.

    pretraining         of ``main.py``: weights and all that is known about their data
    release             of the release's pretraining: weights only (method 4)
    fine_tuned          of ``downstream_eval.py``: one network, its task, and the above
    fine_tuned_release  of the release's fine-tuning: one network and the command line
    export              a folder of safetensors + JSON (:func:`src.pretrained.hub.read_export`)

Every reader returns :class:`CheckpointContents`, in which ``None`` stands for what the file does
not say.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..config import config_from_dict
from ..datasets.clip_input import DOWNSAMPLE_STRIDE, ClipInput
from ..datasets.input_profile import InputProfile
from ..models.encoder_spec import SHARED_OPTIONS, EncoderSpec
from ..models.pos_embed import GRADIENTS
from ..models.vision_transformer import SIZES
from ..utils.checkpoint import PREFIX, require_keys
from ..utils.errors import UserError
from ..utils.person_ids import hash_ids

Kind = Literal["pretraining", "release", "fine_tuned", "fine_tuned_release", "export"]

ENCODER_PREFIX = "encoder."  # of the encoder's weights in a fine-tuned network

_PROJECTION = "pos_embed_proj.predictor_pos_embed_proj.weight"
# What an :class:`EncoderSpec` holds and the shapes of the weights do not tell.
_NOT_IN_SHAPES = ("num_heads", "init", "patch_embed_std", *SHARED_OPTIONS)


@dataclass(frozen=True)
class CheckpointContents:
    """What a checkpoint file holds, of whichever kind it is.

    Attributes:
        encoder: weights under the encoder's own names.
        spec: fields of :class:`EncoderSpec`; without ``num_heads`` where the file does not say.
        clip_input: how runs became clips in training, as far as the file says.
        input_profile: what these clips looked like.
        roi_labels, atlas: the ROIs in their order.
        training_people: hashes of the people of the pretraining.
        head: ``fc_norm.*`` and ``head.*`` of a fine-tuned network, else empty.
        task: what the outputs of the head mean.
        split: part -> ids of the people of the fine-tuning.
        predictor: weights of the predictor under its own names; empty where there is none.
        epoch: epochs done, in the count of the program that wrote the file.
    """

    kind: Kind
    path: Path
    encoder: Mapping[str, Tensor]
    spec: Mapping[str, Any]
    clip_input: ClipInput
    input_profile: InputProfile | None = None
    roi_labels: tuple[str, ...] | None = None
    atlas: str | None = None
    training_people: Tensor | None = None
    head: Mapping[str, Tensor] = field(default_factory=dict)
    task: dict[str, Any] | None = None
    split: dict[str, list[str]] | None = None
    predictor: Mapping[str, Tensor] = field(default_factory=dict)
    epoch: int | None = None

    @property
    def n_components(self) -> int | None:
        """G of the ROI features that the encoder was trained with; ``None`` if with none."""
        projection = self.encoder.get(_PROJECTION)
        return None if projection is None else projection.shape[1]

    @property
    def predictor_size(self) -> dict[str, Any] | None:
        """Fields of :class:`PredictorSpec` but for the encoder's; ``None`` without predictor."""
        if not self.predictor:
            return None
        blocks = {n.split(".")[1] for n in self.predictor if n.startswith("predictor_blocks.")}
        return {
            "embed_dim": self.predictor["predictor_embed.weight"].shape[0],
            "depth": len(blocks),
            "signal_head": "signal_head.weight" in self.predictor,
        }


def kind_of(state: Mapping[str, Any]) -> Kind:
    """The kind of a checkpoint file by its keys."""
    if "model" in state:
        return "fine_tuned" if "provenance" in state else "fine_tuned_release"
    return "pretraining" if "config" in state else "release"


def may_lack(kind: Kind) -> tuple[str, ...]:
    """The weights that a file of ``kind`` may leave out: the release's hold no ROI features."""
    return (GRADIENTS,) if kind in ("release", "fine_tuned_release") else ()


def read_file(state: Mapping[str, Any], path: Path, network: str) -> CheckpointContents:
    """Read a file of any kind; ``network`` is the encoder wanted of one of pretraining.

    Raises:
        UserError: if there is no Brain-JEPA encoder in it, or not this one.
    """
    match kind_of(state):
        case "pretraining":
            return read_pretraining(state, path, network)
        case "release":
            return read_release(state, path, network)
        case "fine_tuned":
            return read_fine_tuned(state, path)
        case _:
            return read_fine_tuned_release(state, path)


# --- one reader for each kind --------------------------------------------------------------------


def read_pretraining(state: Mapping[str, Any], path: Path, network: str) -> CheckpointContents:
    """Read a file of ``main.py`` (:class:`src.pretrain_state.PretrainState`)."""
    config = config_from_dict(state["config"], "the checkpoint's config")
    encoder = _network(state, network, path)
    stated = config.encoder_spec
    spec = spec_from_weights(encoder, path) | {n: getattr(stated, n) for n in _NOT_IN_SHAPES}
    return CheckpointContents(
        kind="pretraining",
        path=path,
        encoder=encoder,
        spec=spec,
        **_provenance(state, spec["crop_size"]),
        predictor=_predictor(state, path),
        epoch=state.get("epoch"),
    )


def read_release(state: Mapping[str, Any], path: Path, network: str) -> CheckpointContents:
    """Read a file of the release's pretraining."""
    encoder = _network(state, network, path)
    spec = spec_from_weights(encoder, path)
    return CheckpointContents(
        kind="release",
        path=path,
        encoder=encoder,
        spec=spec,
        clip_input=ClipInput(spec["crop_size"]),
        predictor=_predictor(state, path),
        epoch=state.get("epoch"),
    )


def read_fine_tuned(state: Mapping[str, Any], path: Path) -> CheckpointContents:
    """Read a file of this project's fine-tuning."""
    encoder, head = split_network(_weights(state, "model", path))
    provenance = state["provenance"]
    stated = EncoderSpec.from_dict(provenance["encoder_spec"])
    spec = spec_from_weights(encoder, path) | {n: getattr(stated, n) for n in _NOT_IN_SHAPES}
    return CheckpointContents(
        kind="fine_tuned",
        path=path,
        encoder=encoder,
        spec=spec,
        **_provenance(provenance, spec["crop_size"]),
        head=head,
        task=state.get("task"),
        split=state.get("split"),
        epoch=state.get("epoch"),
    )


def read_fine_tuned_release(state: Mapping[str, Any], path: Path) -> CheckpointContents:
    """Read a file of the release's fine-tuning, which holds its command line in ``args``."""
    encoder, head = split_network(_weights(state, "model", path))
    args = _release_args(state, path)
    spec = spec_from_weights(encoder, path)
    if size := SIZES.get(args.get("model_name", "")):
        spec["num_heads"] = size["num_heads"]
    stated: dict[str, Any] = {}
    if "use_normalization" in args:
        stated["normalization"] = "zscore_sample" if args["use_normalization"] else "none"
    if "downsample" in args:
        stated["stride"] = DOWNSAMPLE_STRIDE if args["downsample"] else 1
    return CheckpointContents(
        kind="fine_tuned_release",
        path=path,
        encoder=encoder,
        spec=spec,
        clip_input=ClipInput(spec["crop_size"], **stated),
        head=head,
        epoch=state.get("epoch"),
    )


# --- parts that several kinds have ---------------------------------------------------------------


def split_network(
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the encoder in a fine-tuned network, under its own names, and of the rest."""
    encoder = {
        name.removeprefix(ENCODER_PREFIX): value
        for name, value in weights.items()
        if name.startswith(ENCODER_PREFIX)
    }
    return encoder, {n: value for n, value in weights.items() if not n.startswith(ENCODER_PREFIX)}


def spec_from_weights(weights: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Fields of :class:`EncoderSpec`, as far as the shapes of the weights tell.

    Raises:
        UserError: if these are no Brain-JEPA encoder's.
    """
    needed = ("patch_embed.proj.weight", "pos_embed_proj.emb_h", "norm.weight")
    if missing := [name for name in needed if name not in weights]:
        raise UserError(f"checkpoint {path} holds no Brain-JEPA encoder: no {', '.join(missing)}.")
    if (shape := weights["patch_embed.proj.weight"].shape)[1:-1] != (1, 1):
        raise UserError(
            f"checkpoint {path}: patch_embed.proj.weight has shape {list(shape)}; a Brain-JEPA "
            "encoder's is [width, 1, 1, patch]. Another model's file?"
        )
    embed_dim, patch_size = shape[0], shape[-1]
    # The time code repeats for every ROI: tokens are ROI-major (method 1), so its period is P.
    emb_h = weights["pos_embed_proj.emb_h"]
    repeats = (emb_h == emb_h[0]).all(dim=1).nonzero().flatten().tolist()
    patches = repeats[1] if len(repeats) > 1 else len(emb_h)
    return {
        "crop_size": (len(emb_h) // patches, patches * patch_size),
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depth": len({name.split(".")[1] for name in weights if name.startswith("blocks.")}),
        "add_w": "mapping" if _PROJECTION in weights else "origin",
    }


def _network(state: Mapping[str, Any], network: str, path: Path) -> dict[str, Tensor]:
    """Weights of one network of a pretraining under its own names."""
    if network not in ("target_encoder", "encoder"):
        raise UserError(f"network is '{network}'; allowed: target_encoder, encoder.")
    require_keys(state, [network], path)
    weights = _weights(state, network, path)
    return {name.removeprefix(PREFIX): value for name, value in weights.items()}


def _weights(state: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Tensor]:
    if not isinstance(state[key], Mapping):
        raise UserError(
            f"checkpoint {path}: '{key}' is a {type(state[key]).__name__}; weights by their names "
            "were expected. Another program's file?"
        )
    return state[key]


def _predictor(state: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Weights of the predictor under its own names; empty if the file holds none."""
    if "predictor" not in state:
        return {}
    weights = _weights(state, "predictor", path)
    return {name.removeprefix(PREFIX): value for name, value in weights.items()}


def _provenance(stated: Mapping[str, Any], crop_size: tuple[int, int]) -> dict[str, Any]:
    """Fields of :class:`CheckpointContents` that describe the data of the pretraining.

    ``stated`` has the keys of :meth:`src.pretrained.encoder.Pretrained.provenance`, which a file of
    pretraining has at its top. Such a file lists people by their ids, the others by hashes.
    """
    labels, profile = stated.get("roi_labels"), stated.get("input_profile")
    people = stated.get("training_people")
    return {
        "clip_input": ClipInput.from_state(crop_size, stated),
        "input_profile": None if profile is None else InputProfile.from_dict(profile),
        "roi_labels": None if labels is None else tuple(labels),
        "atlas": stated.get("atlas"),
        "training_people": hash_ids(people) if isinstance(people, list) else people,
    }


def _release_args(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The command line that a fine-tuned file of the release was made with, if it holds that."""
    args = state.get("args")
    if args is not None and not isinstance(args, argparse.Namespace):
        raise UserError(
            f"checkpoint {path}: 'args' is a {type(args).__name__}; the release's files hold an "
            "argparse.Namespace. Another program's file?"
        )
    return vars(args) if args else {}
