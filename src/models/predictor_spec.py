"""What a predictor is built of."""

from dataclasses import dataclass

from torch import Tensor

from .encoder_spec import EncoderSpec
from .predictor import VisionTransformerPredictor


@dataclass(frozen=True)
class PredictorSpec:
    """What it takes to build the predictor of an encoder, but for the ROI features.

    Attributes:
        encoder: whose tokens it reads; all but its size follows it.
        embed_dim, depth: its own width and blocks.
        signal_head: whether it has a head for the signal of hidden patches (method 11.4).
    """

    encoder: EncoderSpec
    embed_dim: int
    depth: int
    signal_head: bool = False

    def build(
        self,
        gradients: Tensor | None,
        *,
        attn_mode: str = "sdpa",
        gradient_checkpointing: bool = False,
    ) -> VisionTransformerPredictor:
        """A new predictor; ``gradients`` ``[R, G]`` are those of the encoder."""
        rois, patches = self.encoder.grid
        return VisionTransformerPredictor(
            num_patches=rois * patches,
            num_patches_2d=(rois, patches),
            embed_dim=self.encoder.embed_dim,
            predictor_embed_dim=self.embed_dim,
            depth=self.depth,
            num_heads=self.encoder.num_heads,
            gradient_pos_embed=None if gradients is None else gradients[None],
            attn_mode=attn_mode,
            gradient_checkpointing=gradient_checkpointing,
            init_scheme=self.encoder.init,
            **self.encoder.shared_options,
            signal_patch_size=self.encoder.patch_size if self.signal_head else None,
        )
