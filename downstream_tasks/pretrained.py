"""Read any checkpoint with an encoder in it: ours, the release's, fine-tuned ones of both.

Ours are self-contained. The release's hold weights only; what cannot be read off the shapes of the
weights (attention heads, the gradients) comes from flags. A flag that contradicts the file is an
error, so what a file states need not be repeated and cannot be got wrong.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from downstream_tasks.encoders import Kind, Pretrained, freeze
from downstream_tasks.hub import is_hub_folder, read_hub_folder
from src.config import config_from_dict
from src.datasets.clip_input import DOWNSAMPLE_STRIDE, ClipInput
from src.datasets.input_profile import InputProfile
from src.datasets.roi_features import load_gradients
from src.models.encoder_spec import EncoderSpec
from src.models.layers import FUSED_ATTENTION
from src.models.pos_embed import GRADIENTS, POSITION_KINDS
from src.models.vision_transformer import SIZES
from src.utils.checkpoint import (
    PREFIX,
    find_checkpoint,
    load_checkpoint,
    load_network,
    require_keys,
)
from src.utils.errors import UserError, nearest
from src.utils.person_ids import hash_ids

__all__ = [
    "Pretrained",
    "add_checkpoint_arguments",
    "find_checkpoint",
    "load_from_arguments",
    "load_pretrained",
]

_GRADIENT_TOLERANCE = 1e-6
_FINE_TUNED_PREFIX = "encoder."


def load_pretrained(
    path: str | Path,
    *,
    which: str = "target_encoder",
    load_epoch: int | None = None,
    model_name: str | None = None,
    num_heads: int | None = None,
    crop_size: Sequence[int] | None = None,
    patch_size: int | None = None,
    pred_depth: int | None = None,
    pred_emb_dim: int | None = None,
    add_w: str | None = None,
    gradient_csv_path: str | Path | None = None,
    attn_mode: str = "sdpa",
) -> Pretrained:
    """Load the encoder of a checkpoint file, of a pretraining run's folder, or of an export.

    Args:
        which: ``target_encoder`` or ``encoder``; a fine-tuned file has one only.
        load_epoch: in a folder, ``<tag>-ep<N>.pth.tar`` in place of ``<tag>-latest.pth.tar``.
        gradient_csv_path: gradients or centroids, for files that do not hold them.
        attn_mode: of the encoder built; it changes speed, not results.
        model_name, num_heads, crop_size, patch_size, pred_depth, pred_emb_dim, add_w: what the
            caller believes; compared with the file, and used only where that does not say.

    Raises:
        UserError: on a file that cannot be read or holds no encoder, on a contradiction, and where
            neither file nor flags say what is needed.
    """
    path = Path(path)
    if is_hub_folder(path):
        state = read_hub_folder(path)
    else:
        path = find_checkpoint(path, load_epoch)
        state = load_checkpoint(path)
    kind, weights = _encoder_weights(state, which, path)
    known = _read_off_weights(weights, path) | _stated_spec(state, kind, path)
    flags = {"crop_size": crop_size and tuple(crop_size), "patch_size": patch_size, "add_w": add_w}
    for name, value in flags.items():
        _compare(name, value, known[name], path)
    known["num_heads"] = _choose_heads(known, model_name, num_heads, path)
    _compare_predictor(state, pred_depth, pred_emb_dim, path)
    n_components = known.pop("n_components")
    spec = EncoderSpec(**known)
    provenance = state.get("provenance", state)
    labels = provenance.get("roi_labels")
    gradients = _choose_gradients(
        weights.get(GRADIENTS), gradient_csv_path, spec, n_components, labels, path
    )
    encoder = spec.build(gradients, attn_mode=attn_mode)
    may_lack = (GRADIENTS,) if kind in ("release", "fine_tuned_release") else ()
    load_network(encoder, weights, path, "encoder", may_lack)
    return Pretrained(
        encoder=freeze(encoder),
        encoder_spec=spec,
        kind=kind,
        path=path,
        roi_labels=None if labels is None else tuple(labels),
        atlas=provenance.get("atlas"),
        **_stated_input(state, provenance, kind, spec.crop_size, path),
        attn_mode=attn_mode,
        head={
            name: value
            for name, value in state.get("model", {}).items()
            if not name.startswith(_FINE_TUNED_PREFIX)
        },
        task=state.get("task"),
        split=state.get("split"),
        training_people=_training_people(provenance),
    )


# --- what is in the file -------------------------------------------------------------------------


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


# --- flags against the file ----------------------------------------------------------------------


def _compare(name: str, flag: Any, known: Any, path: Path) -> None:
    if flag is not None and flag != known:
        raise UserError(
            f"{name} is {flag} by flag or config, but the checkpoint {path} has {known}. "
            "Leave it out: it is read from the checkpoint."
        )


def _choose_heads(
    known: Mapping[str, Any], model_name: str | None, num_heads: int | None, path: Path
) -> int:
    """Heads of the file, of ``model_name``, of the flag, or of the only size of that width."""
    stated = known["num_heads"]
    if model_name is not None:
        if model_name not in SIZES:
            raise UserError(
                f"model_name is '{model_name}'; allowed: {', '.join(SIZES)}."
                f"{nearest(model_name, SIZES)}"
            )
        size = SIZES[model_name]
        for name in ("embed_dim", "depth", "num_heads"):
            if known[name] not in (None, size[name]):
                raise UserError(
                    f"model_name is {model_name}, with {name} {size[name]}, but the checkpoint "
                    f"{path} has {known[name]}. Leave it out: it is read from the checkpoint."
                )
        stated = size["num_heads"]
    if stated is None:
        stated = next(
            (s["num_heads"] for s in SIZES.values() if s["embed_dim"] == known["embed_dim"]), None
        )
    if stated is not None:
        _compare("num_heads", num_heads, stated, path)
        return stated
    if num_heads is None or num_heads < 1 or known["embed_dim"] % num_heads:
        raise UserError(
            f"checkpoint {path} is {known['embed_dim']} wide, which no named size is, and does not "
            f"say how many attention heads it has. Give num_heads, a divisor of that width."
        )
    return num_heads


def _compare_predictor(
    state: Mapping[str, Any], pred_depth: int | None, pred_emb_dim: int | None, path: Path
) -> None:
    """The predictor is not used downstream, but a wrong belief about it is a wrong checkpoint."""
    weights = {name.removeprefix(PREFIX): w for name, w in state.get("predictor", {}).items()}
    if weights:
        blocks = {name.split(".")[1] for name in weights if name.startswith("predictor_blocks.")}
        _compare("pred_depth", pred_depth, len(blocks), path)
        width = weights["predictor_embed.weight"].shape[0]
        _compare("pred_emb_dim", pred_emb_dim, width, path)


def _choose_gradients(
    stored: Tensor | None,
    csv_path: str | Path | None,
    spec: EncoderSpec,
    n_components: int | None,
    roi_labels: Sequence[str] | None,
    path: Path,
) -> Tensor | None:
    """The file's gradients, ``stored`` ``[1, R, G]``; those of the CSV where it has none."""
    if spec.add_w == "origin":
        return None
    stored = None if stored is None else stored[0]
    if csv_path is None:
        if stored is None:
            raise UserError(
                f"checkpoint {path} places its ROIs by {n_components} features (add_w: "
                f"{spec.add_w}) and does not hold them. Give gradient_csv_path: the file it was "
                "trained with."
            )
        return stored
    given = torch.from_numpy(load_gradients(csv_path, spec.crop_size[0], roi_labels=roi_labels))
    if given.shape[1] != n_components:
        raise UserError(
            f"{csv_path} has {given.shape[1]} columns, the checkpoint {path} was trained with "
            f"{n_components}. Give the file it was trained with."
        )
    if stored is not None and not torch.allclose(
        stored, given, rtol=0, atol=_GRADIENT_TOLERANCE * float(stored.abs().max())
    ):
        raise UserError(
            f"{csv_path} differs from the gradients in the checkpoint {path}. Leave "
            "gradient_csv_path out: they are read from the checkpoint."
        )
    return given if stored is None else stored


# --- command line --------------------------------------------------------------------------------


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name a checkpoint and give what it does not state."""
    parser.add_argument(
        "--load_path", required=True, help="checkpoint file, folder of a run, or exported model"
    )
    parser.add_argument("--load_epoch", type=int, help="of a run's folder; default: the latest")
    parser.add_argument(
        "--network", default="target_encoder", choices=("target_encoder", "encoder")
    )
    stated = parser.add_argument_group(
        "model",
        "read from the checkpoint; needed only where it does not say, checked where it does",
    )
    stated.add_argument("--model_name", help=f"one of {', '.join(SIZES)}")
    stated.add_argument("--num_heads", type=int, help="attention heads, for sizes without a name")
    stated.add_argument("--crop_size", type=two_numbers, metavar="ROIS,FRAMES")
    stated.add_argument("--patch_size", type=int, help="frames")
    stated.add_argument("--add_w", choices=POSITION_KINDS)
    stated.add_argument("--gradient_csv_path", help="for checkpoints without gradients")
    stated.add_argument("--attn_mode", default="sdpa", choices=tuple(FUSED_ATTENTION))


def load_from_arguments(arguments: argparse.Namespace) -> Pretrained:
    """Load what the flags of :func:`add_checkpoint_arguments` name."""
    names = (
        "load_epoch", "model_name", "num_heads", "crop_size", "patch_size", "add_w",
        "gradient_csv_path", "attn_mode",
    )  # fmt: skip
    flags = {name: getattr(arguments, name) for name in names}
    return load_pretrained(arguments.load_path, which=arguments.network, **flags)


def two_numbers(text: str) -> tuple[int, int]:
    """``450,160`` or ``450x160``, of a flag."""
    try:
        rois, frames = (int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not like 450,160") from None
    return rois, frames
