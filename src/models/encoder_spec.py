"""What an encoder is built of."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from .vision_transformer import SIZES, VisionTransformer

# What encoder and predictor have alike. One name each, here, in the config's section meta and among
# the arguments of both networks.
SHARED_OPTIONS = (
    "add_w",
    "attention_bias",
    "bias_components",
    "bias_scales",
    "bias_slopes",
    "time_code",
    "roi_value_rank",
)


@dataclass(frozen=True)
class EncoderSpec:
    """What it takes to build an encoder, but for the ROI features.

    Attributes:
        crop_size: (R, T), ROIs and frames of a clip.
        patch_size: frames of a patch.
        embed_dim, depth, num_heads: width D, blocks, attention heads.
        add_w: mapping, origin or anatomical.
        init, patch_embed_std: how its weights started; matters for untrained copies only.
        attention_bias, bias_components, bias_scales, bias_slopes, time_code, roi_value_rank: see
            :class:`VisionTransformer`.
    """

    crop_size: tuple[int, int]
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    add_w: str
    init: str = "release"
    patch_embed_std: float = 0.02
    attention_bias: str = "none"
    bias_components: int | None = None
    time_code: str = "published"
    roi_value_rank: int = 0
    bias_scales: tuple[float, ...] | None = None
    bias_slopes: tuple[float, ...] | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EncoderSpec":
        """The inverse of :meth:`to_dict`."""
        tuples = {name: tuple(of) if isinstance(of, list) else of for name, of in values.items()}
        return cls(**tuples)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for checkpoints and JSON."""
        return {
            name: list(of) if isinstance(of, tuple) else of for name, of in asdict(self).items()
        }

    @property
    def model_name(self) -> str | None:
        """The size's name, ``None`` if it has none."""
        size = {name: getattr(self, name) for name in ("embed_dim", "depth", "num_heads")}
        return next((name for name, known in SIZES.items() if known == size), None)

    @property
    def grid(self) -> tuple[int, int]:
        """(R, P): ROIs and time patches per ROI."""
        rois, frames = self.crop_size
        return rois, frames // self.patch_size

    @property
    def shared_options(self) -> dict[str, Any]:
        """Values of :data:`SHARED_OPTIONS`."""
        return {name: getattr(self, name) for name in SHARED_OPTIONS}

    def build(
        self,
        gradients: Tensor | None,
        *,
        attn_mode: str = "sdpa",
        drop_path_rate: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> VisionTransformer:
        """A new encoder; ``gradients`` ``[R, G]`` (or centroids) unless ``add_w`` is origin."""
        return VisionTransformer(
            img_size=self.crop_size,
            patch_size=self.patch_size,
            embed_dim=self.embed_dim,
            depth=self.depth,
            num_heads=self.num_heads,
            drop_path_rate=drop_path_rate,
            gradient_pos_embed=None if gradients is None else gradients[None],
            attn_mode=attn_mode,
            gradient_checkpointing=gradient_checkpointing,
            init_scheme=self.init,
            patch_embed_std=self.patch_embed_std,
            **self.shared_options,
        )
