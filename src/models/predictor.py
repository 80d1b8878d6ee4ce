"""The predictor: guesses the target encoder's output at hidden tokens from context (method 3)."""

from collections.abc import Callable, Sequence

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from .attention_bias import make_attention_bias, undecayed
from .layers import (
    LAYER_NORM,
    apply_masks,
    as_list,
    build_blocks,
    init_weights,
    run_blocks,
    token_extras,
)
from .pos_embed import GRADIENTS, PositionEmbedding, check_roi_features
from .roi_values import add_roi_values

SIGNAL_HEAD = ("signal_head.weight", "signal_head.bias")  # of some objectives only (method 11.4)


class VisionTransformerPredictor(nn.Module):
    """A narrow transformer over context tokens and one mask token per target.

    Args:
        num_patches: number of tokens N = R * P of the full grid.
        num_patches_2d: (R, P).
        embed_dim: width D of the encoder, and of the prediction.
        predictor_embed_dim: the predictor's own width.
        num_heads: heads of a block, the encoder's number.
        gradient_pos_embed: ``[1, R, G]``; the predictor owns a projection of it at its own width,
            and a buffer of this name, as the encoder does: either network can be saved, moved and
            loaded alone, by the same rule.
        signal_patch_size: frames of a patch, for a ``signal_head`` that maps a target's features to
            its signal (method 11.4); unset: no such head, as published.
        attention_bias, bias_components, bias_scales, bias_slopes: as in the encoder, with
            parameters of its own.
        time_code, roi_value_rank: as in the encoder.
    """

    def __init__(
        self,
        num_patches: int,
        num_patches_2d: tuple[int, int],
        embed_dim: int = 768,
        predictor_embed_dim: int = 384,
        depth: int = 6,
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
        signal_patch_size: int | None = None,
        attention_bias: str = "none",
        bias_components: int | None = None,
        bias_scales: Sequence[float] | None = None,
        bias_slopes: Sequence[float] | None = None,
        time_code: str = "published",
        roi_value_rank: int = 0,
    ) -> None:
        super().__init__()
        rois, patches = num_patches_2d
        if rois * patches != num_patches:
            raise ValueError(f"num_patches is {num_patches}, but the grid is {num_patches_2d}")
        self.gradient_checkpointing = gradient_checkpointing
        self.predictor_embed = nn.Linear(embed_dim, predictor_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, predictor_embed_dim))
        gradient_pos_embed = check_roi_features(gradient_pos_embed, rois, add_w)
        self.register_buffer(GRADIENTS, gradient_pos_embed)
        n_features = None if gradient_pos_embed is None else gradient_pos_embed.shape[-1]
        self.predictor_2dpe_proj = PositionEmbedding(
            num_patches_2d, predictor_embed_dim, n_features, add_w, time_code
        )
        self.predictor_blocks = build_blocks(
            dim=predictor_embed_dim,
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
        self.predictor_norm = norm_layer(predictor_embed_dim)
        self.predictor_proj = nn.Linear(predictor_embed_dim, embed_dim)
        self.attention_bias = make_attention_bias(
            attention_bias,
            num_patches_2d,
            num_heads,
            gradient_pos_embed,
            bias_components,
            bias_scales,
            bias_slopes,
        )
        init_weights(self, init_scheme)
        trunc_normal_(self.mask_token, std=0.02)
        self.signal_head: nn.Linear | None = None
        if signal_patch_size is not None:  # last, so that all others begin as they do without it
            self.signal_head = nn.Linear(predictor_embed_dim, signal_patch_size)
            init_weights(self.signal_head, init_scheme)

        add_roi_values(self.predictor_blocks, rois, roi_value_rank)

    def no_weight_decay(self) -> set[str]:
        """As :meth:`VisionTransformer.no_weight_decay`."""
        return undecayed(self)

    def forward(
        self, x: Tensor, masks_x: Tensor | list[Tensor], masks: Tensor | list[Tensor]
    ) -> Tensor:
        """Predict the targets.

        Args:
            x: ``[M * B, K, D]`` encoder output at the context tokens, one group per context mask.
            masks_x: M LongTensors ``[B, K]``, where those tokens are.
            masks: L LongTensors ``[B, Q]``, where the targets are.

        Returns:
            ``[L * M * B, Q, D]``: for each target mask, the prediction from each context.
        """
        return self.predictor_proj(self.features(x, masks_x, masks))

    def features(
        self, x: Tensor, masks_x: Tensor | list[Tensor], masks: Tensor | list[Tensor]
    ) -> Tensor:
        """Return what :meth:`forward` projects: the last LayerNorm at the targets, predictor width.

        Arguments are those of :meth:`forward`. Whatever is predicted of a target is linear in this:
        latent by ``predictor_proj`` and, where there is one, signal by ``signal_head``.
        """
        masks_x, masks = as_list(masks_x), as_list(masks)
        batch = masks_x[0].shape[0]
        positions = self.predictor_2dpe_proj(self.gradient_pos_embed)  # [1, N, d]
        positions = positions.expand(batch, -1, -1)
        x = self.predictor_embed(x) + apply_masks(positions, masks_x)  # [M*B, K, d]
        context_tokens = x.shape[1]
        queries = [
            (self.mask_token + apply_masks(positions, mask)).repeat(len(masks_x), 1, 1)
            for mask in masks
        ]
        x = torch.cat([x.repeat(len(masks), 1, 1), torch.cat(queries)], dim=1)
        tokens = [torch.cat([seen, hidden], dim=1) for hidden in masks for seen in masks_x]
        extras = token_extras(self, self.predictor_blocks, self.predictor_2dpe_proj.grid, tokens)
        x = run_blocks(self.predictor_blocks, x, self.gradient_checkpointing, extras)
        return self.predictor_norm(x)[:, context_tokens:]
