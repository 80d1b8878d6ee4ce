"""The encoder: a vision transformer over patches of one ROI x some frames (method 3)."""

from collections.abc import Callable, Sequence

from timm.layers import PatchEmbed, trunc_normal_
from torch import Tensor, nn

from .attention_bias import make_attention_bias, undecayed
from .layers import (
    LAYER_NORM,
    apply_masks,
    as_list,
    attention_map,
    block_at,
    build_blocks,
    init_weights,
    run_blocks,
    token_extras,
)
from .pos_embed import GRADIENTS, PositionEmbedding, check_roi_features
from .predictor import VisionTransformerPredictor
from .roi_values import add_roi_values

__all__ = [
    "SIZES",
    "VisionTransformer",
    "VisionTransformerPredictor",
    "vit_base",
    "vit_large",
    "vit_small",
    "vit_tiny",
]


SIZES: dict[str, dict[str, int]] = {
    "vit_tiny": {"embed_dim": 192, "depth": 6, "num_heads": 3},
    "vit_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}


class VisionTransformer(nn.Module):
    """Encode a parcellated BOLD run, or the part of it that the masks leave.

    Tokens are ROI-major: token ``r * P + p`` is patch p of ROI r, with P = T / patch_size.
    There is no class token.

    Args:
        img_size: (R, T), ROIs and frames.
        patch_size: frames of a patch; T must be a multiple of it.
        gradient_pos_embed: ``[1, R, G]`` functional gradients (``add_w: mapping``) or MNI centroids
            (``anatomical``); a buffer of this name keeps them. ``origin`` has none.
        attn_mode: ``normal``, or ``sdpa`` (alias ``flash_attn``) for the fused kernel.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        init_scheme: see :func:`src.models.layers.init_weights`.
        patch_embed_std: standard deviation of the patch embedding's initial weights.
        attention_bias: ``none``, or ``gradient`` for an :class:`AttentionBias` of all blocks.
        bias_components: dimensions that it maps the gradients to; as many as these by default.
        bias_scales, bias_slopes: what each head of it starts with.
        time_code: ``published`` or ``few_patches``, see :func:`src.models.pos_embed.sincos_1d`.
        roi_value_rank: rank of :class:`src.models.roi_values.RoiValues`, 0 for none.
    """

    def __init__(
        self,
        img_size: tuple[int, int] = (450, 160),
        patch_size: int = 16,
        in_chans: int = 1,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[..., nn.Module] = LAYER_NORM,
        gradient_pos_embed: Tensor | None = None,
        attn_mode: str = "sdpa",
        add_w: str = "mapping",
        gradient_checkpointing: bool = False,
        init_scheme: str = "release",
        patch_embed_std: float = 0.02,
        attention_bias: str = "none",
        bias_components: int | None = None,
        bias_scales: Sequence[float] | None = None,
        bias_slopes: Sequence[float] | None = None,
        time_code: str = "published",
        roi_value_rank: int = 0,
    ) -> None:
        super().__init__()
        rois, frames = img_size
        if frames % patch_size:
            raise ValueError(f"{frames} frames are not a multiple of the patch size {patch_size}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_patches_2d = (rois, frames // patch_size)
        self.gradient_checkpointing = gradient_checkpointing
        self.patch_embed = PatchEmbed(
            img_size=img_size,
            patch_size=(1, patch_size),
            in_chans=in_chans,
            embed_dim=embed_dim,
        )
        gradient_pos_embed = check_roi_features(gradient_pos_embed, rois, add_w)
        self.register_buffer(GRADIENTS, gradient_pos_embed)
        n_features = None if gradient_pos_embed is None else gradient_pos_embed.shape[-1]
        self.pos_embed_proj = PositionEmbedding(
            self.num_patches_2d, embed_dim, n_features, add_w, time_code
        )
        self.blocks = build_blocks(
            dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            norm_layer=norm_layer,
            attn_mode=attn_mode,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
        )
        self.norm = norm_layer(embed_dim)
        self.attention_bias = make_attention_bias(
            attention_bias,
            self.num_patches_2d,
            num_heads,
            gradient_pos_embed,
            bias_components,
            bias_scales,
            bias_slopes,
        )
        init_weights(self, init_scheme)
        trunc_normal_(self.patch_embed.proj.weight, std=patch_embed_std)
        add_roi_values(self.blocks, rois, roi_value_rank)

    @property
    def num_patches(self) -> int:
        """Number of tokens N = R * P."""
        return self.patch_embed.num_patches

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay beside biases and norms; timm's interface."""
        return undecayed(self)

    def embed(self, x: Tensor, masks: Tensor | list[Tensor] | None = None) -> Tensor:
        """Patches plus positions: ``x`` ``[B, 1, R, T]`` -> ``[B, N, D]``, or ``[M * B, K, D]``."""
        x = self.patch_embed(x) + self.pos_embed_proj(self.gradient_pos_embed)
        return x if masks is None else apply_masks(x, masks)

    def forward(
        self,
        x: Tensor,
        masks: Tensor | list[Tensor] | None = None,
        return_attention: bool = False,
        *,
        read_at: Tensor | list[Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Encode ``x`` ``[B, 1, R, T]`` to ``[B, N, D]``.

        With ``masks``, a LongTensor ``[B, K]`` of the tokens to *keep* or a list of M of them, only
        those are seen and the result is ``[M * B, K, D]``.

        With ``return_attention``, as in the release: that, and the attention of each block, the
        last block's last. Each is ``[B, heads, N, N]`` (``[M * B, heads, K, K]`` under masks),
        without gradient, in float32 on the host: at the published size a block has 1 GB of it per
        clip. It is the same for every ``attn_mode``.

        With ``read_at``, in the form of ``masks``, all tokens are seen and the result is the output
        at these, ``[M * B, K, D]``: the last block computes no others.
        """
        x = self.embed(x, masks)
        seen = None if masks is None else as_list(masks)
        extras = token_extras(self, self.blocks, self.num_patches_2d, seen)
        if return_attention:
            maps = []
            for block in self.blocks:
                maps.append(attention_map(block.attn, block.norm1(x), extras).cpu())
                x = run_blocks([block], x, extras=extras)
            return self.norm(x), maps
        if read_at is None:
            return self.norm(run_blocks(self.blocks, x, self.gradient_checkpointing, extras))
        x = run_blocks(self.blocks[:-1], x, self.gradient_checkpointing, extras)
        return self.norm(block_at(self.blocks[-1], x, read_at, extras))


def vit_tiny(**kwargs: object) -> VisionTransformer:
    """192 wide, 6 deep: for laptops and tests; not in the paper."""
    return VisionTransformer(**{**SIZES["vit_tiny"], **kwargs})


def vit_small(**kwargs: object) -> VisionTransformer:
    """384 wide, 12 deep: 22 M parameters."""
    return VisionTransformer(**{**SIZES["vit_small"], **kwargs})


def vit_base(**kwargs: object) -> VisionTransformer:
    """768 wide, 12 deep: 86 M parameters; the published model."""
    return VisionTransformer(**{**SIZES["vit_base"], **kwargs})


def vit_large(**kwargs: object) -> VisionTransformer:
    """1024 wide, 24 deep: 307 M parameters."""
    return VisionTransformer(**{**SIZES["vit_large"], **kwargs})
