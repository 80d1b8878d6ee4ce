"""A model as safetensors + JSON, in the layout of ``huggingface_hub``'s ``PyTorchModelHubMixin``.

    BrainJEPAHub.from_encoder(load_pretrained("jepa-latest.pth.tar")).save_pretrained("my_model")
    model = BrainJEPAHub.from_pretrained("my_model")       # a folder, or "user/name" on a hub
    tokens = model(model.prepare(series, tr=0.8)[None])    # series [R, frames]

The folder is self-contained: gradients and normalisation statistics are beside the weights, the
ROI labels and everything else in ``config.json``. It can be given as ``--load_path`` too. Of the
people of the pretraining it holds hashes of their ids (:mod:`src.utils.person_ids`), by which an
evaluation detects people that the encoder was trained on; it holds neither ids nor the split of a
fine-tuning.
"""

from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from ..datasets.clip_input import ClipInput
from ..datasets.input_profile import InputProfile
from ..models.downstream_vit import DownstreamViT
from ..models.encoder_spec import EncoderSpec
from ..utils.errors import PACKAGE, UserError
from ..utils.files import replacing
from .encoder import Pretrained
from .file_kinds import ENCODER_PREFIX, CheckpointContents, split_network

# Of the README.md beside the weights; what is in double braces comes from huggingface_hub.
_MODEL_CARD = """---
{{ card_data }}
---

# Brain-JEPA

An encoder of parcellated fMRI ({{ paper_url }}). `config.json` says which ROIs in which order,
which clip length and which normalisation it expects; the weights come with its functional gradients
and normalisation statistics. With the project's checkout on the path, or installed:

```python
from PACKAGE.pretrained.hub import BrainJEPAHub

model = BrainJEPAHub.from_pretrained("FOLDER_OR_REPOSITORY")
clip = model.prepare(series, tr=0.8)  # array or tensor [ROIs, frames], tr in seconds
tokens = model(clip[None])            # [1, ROIs x patches, width]; outputs if it is fine-tuned
```

A series that is too short, or has an ROI that is constant or not finite, is refused;
`prepare(..., short_runs="pad", bad_rois="zero")` takes it.
""".replace("PACKAGE", PACKAGE)


class BrainJEPAHub(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="brain-jepa",
    tags=["fmri", "neuroscience", "self-supervised-learning"],
    paper_url="https://arxiv.org/abs/2409.19407",
    model_card_template=_MODEL_CARD,
):
    """An encoder or fine-tuned network with its input and provenance. See :meth:`from_encoder`.

    The arguments are what ``config.json`` holds.

    Args:
        encoder_spec: :class:`EncoderSpec` as a dict.
        n_components: G of the gradients, ``None`` for ``add_w: origin``.
        has_stats: whether robust statistics come with the weights.
        normalization, sampling: of :class:`ClipInput`, ``None`` where not known.
        clip_sd, global_signal: likewise; folders without them mean that neither is done.
        input_profile: :class:`InputProfile` as a dict.
        n_outputs: of the head of a fine-tuned network, ``None`` for an encoder.
        n_training_people: of the pretraining, ``None`` where that is not known.
    """

    def __init__(
        self,
        encoder_spec: dict,
        n_components: int | None = None,
        roi_labels: list | None = None,
        atlas: str | None = None,
        normalization: str | None = None,
        has_stats: bool = False,
        sampling: dict | None = None,
        input_profile: dict | None = None,
        n_outputs: int | None = None,
        linear_probe: bool = False,
        task: dict | None = None,
        n_training_people: int | None = None,
        clip_sd: float | None = None,
        global_signal: str = "keep",
    ) -> None:
        super().__init__()
        self.encoder_spec = EncoderSpec.from_dict(encoder_spec)
        self.roi_labels, self.atlas = roi_labels, atlas
        self.normalization, self.sampling, self.task = normalization, sampling, task
        self.clip_sd, self.global_signal = clip_sd, global_signal
        self.input_profile = input_profile
        rois = self.encoder_spec.crop_size[0]
        gradients = None if n_components is None else torch.zeros(rois, n_components)
        for name in ("median", "iqr"):
            self.register_buffer(name, torch.ones(rois) if has_stats else None)
        people = None if n_training_people is None else torch.zeros(n_training_people).long()
        self.register_buffer("training_people", people)
        encoder = self.encoder_spec.build(gradients)
        self.network: nn.Module = encoder
        if n_outputs is not None:
            patch = (task or {}).get("patch")
            self.network = DownstreamViT(encoder, n_outputs, patch=patch, linear_probe=linear_probe)
        self.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights, whole or not at all; ``save_pretrained`` writes the rest."""
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        with replacing(save_directory / SAFETENSORS_SINGLE_FILE) as file:
            file.write(save(tensors, {"format": "pt"}))

    @classmethod
    def from_encoder(cls, pretrained: Pretrained) -> "BrainJEPAHub":
        """The exportable form of what :func:`load_pretrained` read."""
        head, clip_input, profile = pretrained.head, pretrained.clip_input, pretrained.input_profile
        linear_probe = "head.1.weight" in head
        last = head.get("head.1.weight" if linear_probe else "head.weight")
        labels, people = pretrained.roi_labels, pretrained.training_people
        model = cls(
            encoder_spec=pretrained.encoder_spec.to_dict(),
            n_components=None if pretrained.gradients is None else pretrained.gradients.shape[1],
            roi_labels=None if labels is None else list(labels),
            atlas=pretrained.atlas,
            normalization=clip_input.normalization,
            has_stats=clip_input.stats is not None,
            sampling=clip_input.sampling,
            input_profile=None if profile is None else profile.to_dict(),
            n_outputs=None if last is None else len(last),
            linear_probe=linear_probe,
            task=pretrained.task,
            n_training_people=None if people is None else len(people),
            **clip_input.cleaning,
        )
        state = pretrained.encoder.state_dict()
        if last is not None:
            state = {ENCODER_PREFIX + name: value for name, value in state.items()} | head
        known = {
            "training_people": people,
            **(clip_input.stats or {}),
        }
        model.load_state_dict(
            {f"network.{name}": value for name, value in state.items()}
            | {name: value for name, value in known.items() if value is not None},
            strict=True,
        )
        return model

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **arguments: Any
    ) -> "BrainJEPAHub":
        # The mixin's own default would leave weights that are missing from the file random; of a
        # folder it prints a line, in the middle of what a program prints.
        file = Path(model_id) / SAFETENSORS_SINGLE_FILE
        if not file.is_file():
            return super()._from_pretrained(
                model_id=model_id, map_location=map_location, strict=strict, **arguments
            )
        known = signature(cls).parameters
        model = cls(**{name: value for name, value in arguments.items() if name in known})
        return cls._load_as_safetensor(model, str(file), map_location, strict)

    @property
    def encoder(self) -> nn.Module:
        """The encoder inside."""
        return self.network.encoder if isinstance(self.network, DownstreamViT) else self.network

    @property
    def clip_input(self) -> ClipInput:
        """How a run becomes a clip, as far as it is known."""
        stats = None if self.median is None else {"median": self.median, "iqr": self.iqr}
        sampling = self.sampling or {}
        cleaning = {"clip_sd": self.clip_sd, "global_signal": self.global_signal}
        return ClipInput(
            self.encoder_spec.crop_size, self.normalization, stats, **sampling, **cleaning
        )

    def prepare(
        self,
        series: Tensor | np.ndarray,
        tr: float,
        target_tr: float | None = None,
        normalization: str | None = None,
        short_runs: str = "error",
        bad_rois: str = "exclude",
        clip_sd: float | str | None = "checkpoint",
        global_signal: str = "checkpoint",
    ) -> Tensor:
        """The centre clip ``[1, R, T]`` of ``series`` ``[R, frames]``, as in pretraining.

        ``target_tr`` (seconds) and ``normalization`` replace the model's own, and so do ``clip_sd``
        and ``global_signal`` unless they are "checkpoint". A series that is too short is refused
        unless ``short_runs`` is "pad", one with a constant or non-finite ROI unless ``bad_rois`` is
        "zero"; see :meth:`ClipInput.clip_of_series`.
        """
        changed = self.clip_input.changed(
            target_tr=target_tr,
            normalization=normalization,
            short_runs=short_runs,
            bad_rois=bad_rois,
            clip_sd=clip_sd,
            global_signal=global_signal,
        )
        return changed.clip_of_series(series, tr)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[B, N, D]`` of clips ``[B, 1, R, T]``; outputs ``[B, C]`` if fine-tuned."""
        return self.network(x)


def is_export(path: Path) -> bool:
    """Whether ``path`` is a folder of this layout."""
    return (path / CONFIG_NAME).is_file() and (path / SAFETENSORS_SINGLE_FILE).is_file()


def read_export(path: Path) -> CheckpointContents:
    """Read a folder of this layout.

    Raises:
        UserError: if the folder is damaged or another kind of model's.
    """
    try:
        model = BrainJEPAHub.from_pretrained(path)
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not a folder that BrainJEPAHub wrote: {error}") from error
    profile, weights = model.input_profile, model.network.state_dict()
    encoder, head = weights, {}
    if isinstance(model.network, DownstreamViT):
        encoder, head = split_network(weights)
    return CheckpointContents(
        kind="export",
        path=path,
        encoder=encoder,
        spec=asdict(model.encoder_spec),
        clip_input=model.clip_input,
        input_profile=None if profile is None else InputProfile.from_dict(profile),
        roi_labels=None if model.roi_labels is None else tuple(model.roi_labels),
        atlas=model.atlas,
        training_people=model.training_people,
        head=head,
        task=model.task,
    )
