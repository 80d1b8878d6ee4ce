"""Brainmarks plug-in: evaluate a checkpoint of this project, or of the release, with Brainmarks.

Brainmarks (0.1.1) finds models in the namespace package ``brainmarks.models``, so this folder has
no ``__init__.py``. In an environment with ``brainmarks`` and requirements.txt, at the repository:

    export PYTHONPATH=$PWD:$PWD/downstream_tasks/brainmarks_plugin
    export BRAIN_JEPA_CHECKPOINT=logs/pretrain/jepa-latest.pth.tar
    python -m brainmarks.models.test_models brain_jepa_checkpoint
    python -m brainmarks.main_logistic brain_jepa_checkpoint patch aabc_sex

or name it by keyword: ``--overrides model_kwargs.ckpt_path=...``. A checkpoint of the release needs
``BRAIN_JEPA_GRADIENTS`` (or ``gradient_csv_path``) as well.
"""

import os
from pathlib import Path
from typing import Any

from brainmarks.models.base import Embeddings
from brainmarks.models.registry import register_model
from torch import Tensor, nn

from src.datasets.clip_input import ClipInput
from src.pretrained.load import load_pretrained
from src.utils.errors import UserError

CHECKPOINT_VARIABLE = "BRAIN_JEPA_CHECKPOINT"
GRADIENTS_VARIABLE = "BRAIN_JEPA_GRADIENTS"
# Parcellations of Brainmarks, by their number of ROIs; 450 is the published one, Tian S3 first.
SPACES = {
    450: "schaefer400_tians3",
    400: "schaefer400",
    424: "a424",
    457: "schaefer400_tians3_buckner7",
}


class BrainJEPATransform:
    """Un-normalise, resample to the target TR, normalise as in pretraining, pad or crop.

    A sample's ``bold`` ``[frames, R]`` becomes the clip ``[1, R, T]``; its other keys stay.
    """

    def __init__(self, clip_input: ClipInput) -> None:
        self.clip_input = clip_input

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        series = sample["bold"] * sample["std"] + sample["mean"]
        # Brainmarks writes a constant ROI as zeros with SD 0; it stays constant, and becomes 0.
        return {**sample, "bold": self.clip_input.clip_of_series(series.T, float(sample["tr"]))}


class BrainJEPAWrapper(nn.Module):
    """The frozen encoder; its tokens ``[B, N, D]`` are patch embeddings."""

    __space__ = SPACES[450]

    def __init__(self, encoder: nn.Module, space: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.__space__ = space

    def forward(self, batch: dict[str, Tensor]) -> Embeddings:
        return Embeddings(
            cls_embeds=None, reg_embeds=None, patch_embeds=self.encoder(batch["bold"])
        )


@register_model
def brain_jepa_checkpoint(
    ckpt_path: str | Path | None = None,
    gradient_csv_path: str | Path | None = None,
    target_tr: float | None = None,
    normalization: str | None = None,
    clip_sd: float | str | None = "checkpoint",
    global_signal: str = "checkpoint",
    **stated: Any,
) -> tuple[BrainJEPATransform, BrainJEPAWrapper]:
    """The model and its transform.

    Args:
        ckpt_path: a checkpoint, a run's folder or an export; default: ``$BRAIN_JEPA_CHECKPOINT``.
        gradient_csv_path: for files without gradients; default: ``$BRAIN_JEPA_GRADIENTS``.
        target_tr: seconds; default: that of pretraining, or 2.
        normalization: default: that of pretraining, or zscore_sample.
        clip_sd, global_signal: default: those of pretraining.
        stated: more arguments of :func:`load_pretrained`, such as ``model_name``.
    """
    ckpt_path = ckpt_path or os.environ.get(CHECKPOINT_VARIABLE)
    if not ckpt_path:
        raise UserError(f"name the checkpoint: ckpt_path=... or the variable {CHECKPOINT_VARIABLE}")
    pretrained = load_pretrained(
        ckpt_path,
        gradient_csv_path=gradient_csv_path or os.environ.get(GRADIENTS_VARIABLE),
        **stated,
    )
    rois = pretrained.encoder_spec.crop_size[0]
    if rois not in SPACES:
        known = ", ".join(f"{n} ({space})" for n, space in SPACES.items())
        raise UserError(f"{ckpt_path} has {rois} ROIs; Brainmarks has parcellations of {known}.")
    # As Brainmarks does with other models: every sample gets an embedding.
    clip_input = pretrained.clip_input.changed(
        target_tr=target_tr,
        normalization=normalization,
        clip_sd=clip_sd,
        global_signal=global_signal,
        short_runs="pad",
        bad_rois="zero",
    )
    return BrainJEPATransform(clip_input), BrainJEPAWrapper(pretrained.encoder, SPACES[rois])
