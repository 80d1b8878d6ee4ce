"""Read any checkpoint with an encoder in it: ours, the release's, fine-tuned ones of both.

Ours are self-contained. The release's hold weights only; what cannot be read off the shapes of the
weights (attention heads, the gradients) comes from flags. A flag that contradicts the file is an
error, so what a file states need not be repeated and cannot be got wrong.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..datasets.roi_features import load_gradients
from ..models.encoder_spec import EncoderSpec
from ..models.pos_embed import GRADIENTS
from ..models.predictor_spec import PredictorSpec
from ..models.vision_transformer import SIZES
from ..utils.checkpoint import find_checkpoint, load_checkpoint, load_network
from ..utils.errors import UserError, nearest
from ..utils.yaml_config import read_yaml
from .encoder import Pretrained, freeze
from .file_kinds import CheckpointContents, may_lack, read_file
from .hub import is_export, read_export

logger = logging.getLogger(__name__)

_GRADIENT_TOLERANCE = 1e-6
_RUN_CONFIG = "params-ijepa.yaml"  # that a pretraining leaves beside its checkpoints


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
    with_predictor: bool = False,
) -> Pretrained:
    """Load the encoder of a checkpoint file, of a pretraining run's folder, or of an export.

    Args:
        which: ``target_encoder`` or ``encoder``; a fine-tuned file has one only.
        load_epoch: in a folder, ``<tag>-ep<N>.pth.tar`` in place of ``<tag>-latest.pth.tar``; of a
            file it is compared with its name and with the epoch it holds.
        gradient_csv_path: gradients or centroids, for files that do not hold them; by default those
            that the config of the run, beside the file, names.
        attn_mode: of the encoder built; it changes speed, not results.
        with_predictor: load the predictor too, which files of a pretraining hold.
        model_name, num_heads, crop_size, patch_size, pred_depth, pred_emb_dim, add_w: what the
            caller believes; compared with the file, and used only where that does not say. The
            predictor (``pred_``) is not used, so that a difference there is only logged.

    Raises:
        UserError: on a file that cannot be read or holds no encoder, or no predictor if that is
            wanted, on a contradiction, and where neither file nor flags say what is needed.
    """
    contents = read_checkpoint(path, which, load_epoch)
    path = contents.path
    _check_epoch(contents, load_epoch)
    flags = {"crop_size": crop_size and tuple(crop_size), "patch_size": patch_size, "add_w": add_w}
    for name, value in flags.items():
        _compare(name, value, contents.spec[name], path)
    _compare_predictor(contents, pred_depth, pred_emb_dim)
    spec = EncoderSpec(
        **{**contents.spec, "num_heads": _choose_heads(contents, model_name, num_heads)}
    )
    gradients = _choose_gradients(contents, gradient_csv_path)
    encoder = spec.build(gradients, attn_mode=attn_mode)
    load_network(encoder, contents.encoder, path, "encoder", may_lack(contents.kind))
    predictor_spec = predictor = None
    if with_predictor:
        predictor_spec = _spec_of_predictor(contents, spec)
        predictor = predictor_spec.build(gradients, attn_mode=attn_mode)
        load_network(predictor, contents.predictor, path, "predictor", may_lack(contents.kind))
        freeze(predictor)
    return Pretrained(
        encoder=freeze(encoder),
        encoder_spec=spec,
        kind=contents.kind,
        path=path,
        clip_input=contents.clip_input,
        roi_labels=contents.roi_labels,
        atlas=contents.atlas,
        input_profile=contents.input_profile,
        attn_mode=attn_mode,
        head=contents.head,
        task=contents.task,
        split=contents.split,
        training_people=contents.training_people,
        predictor=predictor,
        predictor_spec=predictor_spec,
    )


def read_checkpoint(
    path: str | Path, network: str, load_epoch: int | None = None
) -> CheckpointContents:
    """What the file, run's folder or export at ``path`` holds, of whichever kind it is.

    ``network`` is the encoder wanted of a pretraining: ``target_encoder`` or ``encoder``.

    Raises:
        UserError: if it cannot be read or holds no encoder.
    """
    path = Path(path)
    if is_export(path):
        return read_export(path)
    path = find_checkpoint(path, load_epoch)
    return read_file(load_checkpoint(path), path, network)


def _spec_of_predictor(contents: CheckpointContents, encoder: EncoderSpec) -> PredictorSpec:
    size = contents.predictor_size
    if size is None:
        what = contents.kind.replace("_", " ")
        raise UserError(
            f"checkpoint {contents.path} ({what}) holds no predictor, which only files of a "
            "pretraining do: give that one, such as jepa-latest.pth.tar of its run."
        )
    return PredictorSpec(encoder, **size)


# --- flags against the file ----------------------------------------------------------------------


def _compare(name: str, flag: Any, known: Any, path: Path) -> None:
    if flag is not None and flag != known:
        raise UserError(
            f"{name} is {flag} by flag or config, but the checkpoint {path} has {known}. "
            "Leave it out: it is read from the checkpoint."
        )


def _choose_heads(
    contents: CheckpointContents, model_name: str | None, num_heads: int | None
) -> int:
    """Heads of the file, of ``model_name``, of the flag, or of the only size of that width."""
    known, path = contents.spec, contents.path
    stated = known.get("num_heads")
    if model_name is not None:
        if model_name not in SIZES:
            raise UserError(
                f"model_name is '{model_name}'; allowed: {', '.join(SIZES)}."
                f"{nearest(model_name, SIZES)}"
            )
        size = SIZES[model_name]
        for name in ("embed_dim", "depth", "num_heads"):
            if known.get(name) not in (None, size[name]):
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
    contents: CheckpointContents, pred_depth: int | None, pred_emb_dim: int | None
) -> None:
    """Log a difference: the release's scripts pass 12 for a predictor of depth 6."""
    size = contents.predictor_size or {}
    for name, flag, known in (
        ("pred_depth", pred_depth, size.get("depth")),
        ("pred_emb_dim", pred_emb_dim, size.get("embed_dim")),
    ):
        if None not in (flag, known) and flag != known:
            logger.info(
                "%s is %d, the checkpoint %s has %d: without effect, its predictor is not used",
                *(name, flag, contents.path, known),
            )


def _check_epoch(contents: CheckpointContents, load_epoch: int | None) -> None:
    """Refuse a file of another epoch: by its name, compared before, or else by what it holds."""
    path, epoch = contents.path, contents.epoch
    if load_epoch is None:
        return
    if contents.kind not in ("pretraining", "release"):
        logger.info("load_epoch %d: without effect, %s is not of a pretraining", load_epoch, path)
        return
    # The release counts otherwise: its ep300 holds 299 epochs (method 8.5). Its names decide.
    named = contents.kind == "release" and re.search(r"-ep\d+\.pth", path.name)
    if not named and epoch is not None and epoch != load_epoch:
        raise UserError(
            f"load_epoch is {load_epoch}, but {path} was written after epoch {epoch}. Leave "
            "load_epoch out, or name another file."
        )


def _gradients_of_run(path: Path) -> str | None:
    """The CSV that the config beside the checkpoint names, if both are there."""
    run_config = path.parent / _RUN_CONFIG
    if not run_config.is_file():
        return None
    data = read_yaml(run_config).get("data")
    csv_path = data.get("gradient_csv_path") if isinstance(data, dict) else None
    if not isinstance(csv_path, str) or not Path(csv_path).is_file():
        return None
    logger.info("gradients: %s, which %s names", csv_path, run_config)
    return csv_path


def _choose_gradients(contents: CheckpointContents, csv_path: str | Path | None) -> Tensor | None:
    """The file's gradients ``[R, G]``; those of the CSV where it has none."""
    spec, path, n_components = contents.spec, contents.path, contents.n_components
    if spec["add_w"] == "origin":
        return None
    stored = contents.encoder.get(GRADIENTS)
    stored = None if stored is None else stored[0]
    if csv_path is None and stored is None:
        csv_path = _gradients_of_run(path)
    if csv_path is None:
        if stored is None:
            raise UserError(
                f"checkpoint {path} places its ROIs by {n_components} features (add_w: "
                f"{spec['add_w']}) and does not hold them. Give gradient_csv_path: the file it was "
                "trained with."
            )
        return stored
    rois = spec["crop_size"][0]
    given = torch.from_numpy(load_gradients(csv_path, rois, roi_labels=contents.roi_labels))
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
