"""An encoder together with what its checkpoint states: its input, ROIs and training people."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..datasets.clip_input import ClipInput
from ..datasets.fmri import FMRIDataset
from ..datasets.folder import DataFolder
from ..datasets.input_profile import InputProfile, input_mismatch
from ..datasets.published_rois import (
    N_CORTICAL,
    N_SUBCORTICAL,
    PUBLISHED_ORDER,
    only_numbered,
    out_of_place,
)
from ..models.encoder_spec import EncoderSpec
from ..models.predictor_spec import PredictorSpec
from ..models.vision_transformer import VisionTransformer, VisionTransformerPredictor
from ..utils.errors import UserError
from .file_kinds import Kind

Network = TypeVar("Network", bound=nn.Module)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """A frozen encoder and what its file says about the data it expects.

    Attributes:
        encoder: in evaluation mode, without gradients.
        encoder_spec: what it is built of.
        kind: which sort of file it came from; ``release`` files hold weights only.
        roi_labels, atlas: the ROIs in their order; ``None`` where the file does not say.
        clip_input: how runs became clips in training, as far as the file says.
        input_profile: what these clips looked like, ``None`` where the file does not say.
        attn_mode: attention kernel of ``encoder`` and of copies of it.
        head: ``fc_norm.*`` and ``head.*`` of a fine-tuned file, else empty.
        task: what a fine-tuned file of this project says of its task, else ``None``.
        split: part -> ids of its people, of the same files; an export leaves it out.
        training_people: hashes (:func:`src.utils.person_ids.hash_ids`) of the people it was
            pretrained on, ``None`` where the file does not say.
        predictor, predictor_spec: the frozen predictor and what it is built of, where it was asked
            for (``load_pretrained(..., with_predictor=True)``).
        split_stats: ``median`` and ``iqr`` of the training people of an evaluation's split, for
            robust methods of whose statistics ``clip_input`` holds none.
    """

    encoder: VisionTransformer
    encoder_spec: EncoderSpec
    kind: Kind
    path: Path
    clip_input: ClipInput
    roi_labels: tuple[str, ...] | None = None
    atlas: str | None = None
    input_profile: InputProfile | None = None
    attn_mode: str = "sdpa"
    head: Mapping[str, Tensor] = field(default_factory=dict)
    task: dict[str, Any] | None = None
    split: dict[str, list[str]] | None = None
    training_people: Tensor | None = None
    split_stats: Mapping[str, Any] | None = None
    predictor: VisionTransformerPredictor | None = None
    predictor_spec: PredictorSpec | None = None

    @property
    def gradients(self) -> Tensor | None:
        """``[R, G]`` gradients or centroids, ``None`` for ``add_w: origin``."""
        stored = self.encoder.gradient_pos_embed
        return None if stored is None else stored[0]

    def provenance(self) -> dict[str, Any]:
        """All but the weights, in plain types and tensors: what files made from this one keep.

        :func:`src.pretrained.file_kinds.read_fine_tuned` reads it.
        """
        return {
            "encoder_spec": self.encoder_spec.to_dict(),
            "roi_labels": None if self.roi_labels is None else list(self.roi_labels),
            "atlas": self.atlas,
            **self.clip_input.to_state(),
            "input_profile": None if self.input_profile is None else self.input_profile.to_dict(),
            "training_people": self.training_people,
        }

    def trainable_copy(
        self, *, drop_path_rate: float = 0.0, gradient_checkpointing: bool = False
    ) -> VisionTransformer:
        """The same encoder, to be trained on."""
        encoder = self.encoder_spec.build(
            self.gradients,
            attn_mode=self.attn_mode,
            drop_path_rate=drop_path_rate,
            gradient_checkpointing=gradient_checkpointing,
        )
        encoder.load_state_dict(self.encoder.state_dict(), strict=True)
        return encoder

    def untrained(self, seed: int) -> VisionTransformer:
        """An encoder of this shape with the random weights of ``seed``, frozen."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return freeze(self.encoder_spec.build(self.gradients, attn_mode=self.attn_mode))

    def untrained_networks(self, seed: int) -> tuple[VisionTransformer, VisionTransformerPredictor]:
        """Encoder and predictor as a pretraining with ``seed`` begins with them, frozen."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = self.encoder_spec.build(self.gradients, attn_mode=self.attn_mode)
            predictor = self.predictor_spec.build(self.gradients, attn_mode=self.attn_mode)
        return freeze(encoder), freeze(predictor)

    def check_folder(self, folder: DataFolder) -> str | None:
        """Compare the folder's ROIs with those of the checkpoint, in order.

        Where the checkpoint has no labels (the release's have none) 450 ROIs are compared with the
        published order.

        Returns:
            What qualifies all results: that no labels tell whether the order is right.

        Raises:
            UserError: if the ROIs are others, or in another order.
        """
        rois = self.encoder_spec.crop_size[0]
        if folder.n_rois != rois:
            raise UserError(
                f"{folder.path} has {folder.n_rois} ROIs ({folder.atlas}), the checkpoint "
                f"{self.path} was trained on {rois}{f' ({self.atlas})' if self.atlas else ''}. "
                "Prepare the data with the atlas of the checkpoint."
            )
        if self.roi_labels is None:
            return self._check_published_order(folder)
        for number, (here, there) in enumerate(
            zip(folder.roi_labels, self.roi_labels, strict=True), start=1
        ):
            if here != there:
                raise UserError(
                    f"ROI {number} is '{here}' in {folder.path} and '{there}' in the checkpoint "
                    f"{self.path}: the order of ROIs, or the atlas, differs. Write the data "
                    "with the ROIs in the checkpoint's order."
                )
        return None

    def _check_published_order(self, folder: DataFolder) -> str | None:
        """As :meth:`check_folder`, for a checkpoint without labels."""
        unknown = f"the checkpoint {self.path} does not name its ROIs"
        if folder.n_rois != N_SUBCORTICAL + N_CORTICAL:
            return f"ROI order not known: {unknown}. It is taken to be that of {folder.path}."
        if only_numbered(folder.roi_labels):
            return (
                f"ROI order not known: {unknown}, and nor does {folder.path}. It is taken to be "
                f"the published one: {PUBLISHED_ORDER}."
            )
        if wrong := out_of_place(folder.roi_labels):
            raise UserError(
                f"{folder.path}: {wrong}. {unknown[0].upper()}{unknown[1:]}, and the release was "
                f"trained on {PUBLISHED_ORDER}. Write the data with its ROIs in that order "
                "(data/README.md)."
            )
        return None

    def clip_note(self, dataset: FMRIDataset) -> str | None:
        """In what its clips are unlike those the encoder was trained on (method 7), if they are."""
        if self.input_profile is None:
            return None
        found = input_mismatch(self.input_profile, InputProfile.from_dataset(dataset))
        if not found:
            return None
        return (
            f"clips of {dataset.folder.path} are unlike those that {self.path} was trained on: "
            f"{'; '.join(found)}. Its features may say little about them"
        )


def freeze(network: Network) -> Network:
    """Evaluation mode, no gradients."""
    return network.eval().requires_grad_(False)
