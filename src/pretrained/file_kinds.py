"""What each kind of checkpoint file states, beyond its weights."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import config_from_dict
from ..datasets.clip_input import DOWNSAMPLE_STRIDE, ClipInput
from ..datasets.input_profile import InputProfile
from ..models.encoder_spec import EncoderSpec
from ..models.vision_transformer import SIZES
from ..utils.checkpoint import (
    PREFIX,
    require_keys,
)
from ..utils.errors import UserError
from ..utils.person_ids import hash_ids
from .encoder import Kind

_FINE_TUNED_PREFIX = "encoder."


def _encoder_weights(
    state: Mapping[str, Any], which: str, path: Path
) -> tuple[Kind, dict[str, Tensor]]:
    if "model" in state:
        _require_mapping(state, "model", path)
        weights = {
            name.removeprefix(_FINE_TUNED_PREFIX): value
            for name, value in state["model"].items()
            if name.startswith(_FINE_TUNED_PREFIX)
        }
        if path.is_dir():
            kind: Kind = "hub"
        else:
            kind = "fine_tuned" if "provenance" in state else "fine_tuned_release"
    else:
        if which not in ("target_encoder", "encoder"):
            raise UserError(f"network is '{which}'; allowed: target_encoder, encoder.")
        require_keys(state, [which], path)
        _require_mapping(state, which, path)
        weights = {name.removeprefix(PREFIX): value for name, value in state[which].items()}
        kind = "pretraining" if "config" in state else "release"
    return kind, weights


def _require_mapping(state: Mapping[str, Any], key: str, path: Path) -> None:
    if not isinstance(state[key], Mapping):
        raise UserError(
            f"checkpoint {path}: '{key}' is a {type(state[key]).__name__}; weights by their names "
            "were expected. Another program's file?"
        )


def _release_args(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The command line that a fine-tuned file of the release was made with, if it holds that."""
    args = state.get("args")
    if args is not None and not isinstance(args, argparse.Namespace):
        raise UserError(
            f"checkpoint {path}: 'args' is a {type(args).__name__}; the release's files hold an "
            "argparse.Namespace. Another program's file?"
        )
    return vars(args) if args else {}


def _read_off_weights(weights: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Everything about the encoder that the shapes of its weights tell."""
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
    projection = weights.get("pos_embed_proj.predictor_pos_embed_proj.weight")
    return {
        "crop_size": (len(emb_h) // patches, patches * patch_size),
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depth": len({name.split(".")[1] for name in weights if name.startswith("blocks.")}),
        "num_heads": None,
        "add_w": "origin" if projection is None else "mapping",
        "n_components": None if projection is None else projection.shape[1],
    }


def _stated_spec(state: Mapping[str, Any], kind: Kind, path: Path) -> dict[str, Any]:
    """What the file says in words, beyond the shapes."""
    if kind == "pretraining":
        config = config_from_dict(state["config"], "the checkpoint's config")
        return {
            "num_heads": config.encoder_size["num_heads"],
            "add_w": config.meta.add_w,
            "init": config.meta.init,
            "patch_embed_std": config.meta.patch_embed_std,
        }
    if "provenance" in state:
        spec = EncoderSpec.from_dict(state["provenance"]["encoder_spec"])
        names = ("num_heads", "add_w", "init", "patch_embed_std")
        return {name: getattr(spec, name) for name in names}
    if kind == "fine_tuned_release":
        size = SIZES.get(_release_args(state, path).get("model_name", ""), {})
        return {"num_heads": size["num_heads"]} if size else {}
    return {}


def _stated_input(
    state: Mapping[str, Any],
    provenance: Mapping[str, Any],
    kind: Kind,
    crop_size: tuple[int, int],
    path: Path,
) -> dict[str, Any]:
    """How runs became clips and what these looked like, where the file says."""
    if kind == "fine_tuned_release":
        args, stated = _release_args(state, path), {}
        if "use_normalization" in args:
            stated["normalization"] = "zscore_sample" if args["use_normalization"] else "none"
        if "downsample" in args:
            stated["stride"] = DOWNSAMPLE_STRIDE if args["downsample"] else 1
        return {"clip_input": ClipInput(crop_size, **stated)}
    profile = provenance.get("input_profile")
    return {
        "clip_input": ClipInput.from_state(crop_size, provenance),
        "input_profile": None if profile is None else InputProfile.from_dict(profile),
    }


def _training_people(provenance: Mapping[str, Any]) -> Tensor | None:
    """Hashes of the people of the pretraining: its own files list their ids."""
    people = provenance.get("training_people")
    return hash_ids(people) if isinstance(people, list) else people
