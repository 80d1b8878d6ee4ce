"""What encoder and predictor share: transformer blocks, masking, initialisation."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

LAYER_NORM = partial(nn.LayerNorm, eps=1e-6)
# ``flash_attn`` is the release's name; PyTorch's fused attention picks the flash kernel by itself.
FUSED_ATTENTION = {"normal": False, "sdpa": True, "flash_attn": True}


class ExtraDimensions(NamedTuple):
    """What a bias adds to the queries and keys of attention, ``[B or 1, heads, N, E]`` each."""

    query: Tensor
    key: Tensor

    def join(
        self, q: Tensor, k: Tensor, masks: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Wider queries and keys ``[B, heads, N, head_dim + E]``; with masks of these queries."""
        query = self.query if masks is None else per_head_at(self.query, masks)
        return _side_by_side(q, query), _side_by_side(k, self.key)


def _side_by_side(tokens: Tensor, extra: Tensor) -> Tensor:
    """Join ``[M * B, heads, N, .]`` and the same of batch M * B, B or 1."""
    if len(extra) == 1:
        extra = extra.expand(len(tokens), -1, -1, -1)
    elif len(extra) < len(tokens):
        extra = extra.repeat(len(tokens) // len(extra), 1, 1, 1)
    return torch.cat([tokens, extra], dim=-1)


class TokenExtras(NamedTuple):
    """What attention of a network's tokens has beyond the published one (method 11.3).

    Attributes:
        bias: extra dimensions of queries and keys.
        rois: ``[B or 1, N]``, the ROI of each token, where values depend on it.
    """

    bias: ExtraDimensions | None
    rois: Tensor | None


def token_extras(
    network: nn.Module, blocks: nn.ModuleList, grid: tuple[int, int], masks: list[Tensor] | None
) -> TokenExtras | None:
    """The extras of the tokens of M masks, of all tokens by default; ``None`` if it has none."""
    attention, bias, rois = blocks[0].attn, None, None
    if network.attention_bias is not None:
        bias = network.attention_bias(network.gradient_pos_embed, attention.scale, masks)
    if hasattr(attention, "roi_values"):
        everything = torch.arange(grid[0] * grid[1], device=attention.qkv.weight.device)
        rois = (everything[None] if masks is None else torch.cat(masks)) // grid[1]
    return None if bias is None and rois is None else TokenExtras(bias, rois)


def build_blocks(
    *,
    dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    qkv_bias: bool,
    norm_layer: Callable[..., nn.Module],
    attn_mode: str,
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> nn.ModuleList:
    """Stack pre-norm blocks of timm; drop path rises linearly with depth to ``drop_path_rate``.

    ``attn_mode`` is ``normal`` (explicit softmax) or ``sdpa`` / ``flash_attn`` (fused kernel).
    """
    if attn_mode not in FUSED_ATTENTION:
        raise ValueError(f"attn_mode is '{attn_mode}'; allowed: {', '.join(FUSED_ATTENTION)}")
    rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
    blocks = nn.ModuleList(
        Block(
            dim,
            num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            proj_drop=drop_rate,
            attn_drop=attn_drop_rate,
            drop_path=rate,
            norm_layer=norm_layer,
        )
        for rate in rates
    )
    for block in blocks:
        block.attn.fused_attn = FUSED_ATTENTION[attn_mode]
    return blocks


def run_blocks(
    blocks: nn.ModuleList,
    x: Tensor,
    gradient_checkpointing: bool = False,
    extras: TokenExtras | None = None,
) -> Tensor:
    """Apply the blocks to ``x`` ``[B, N, D]``; checkpointing recomputes them in backward."""
    steps = (
        blocks if extras is None else [partial(block_at, block, extras=extras) for block in blocks]
    )
    if gradient_checkpointing and torch.is_grad_enabled():
        return checkpoint_seq(steps, x, use_reentrant=False)
    for step in steps:
        x = step(x)
    return x


def block_at(
    block: Block,
    x: Tensor,
    masks: Tensor | list[Tensor] | None = None,
    extras: TokenExtras | None = None,
) -> Tensor:
    """Output of ``block``, at some tokens only: ``x`` ``[B, N, D]`` -> ``[M * B, K, D]``.

    Keys and values are those of all tokens; queries, projection and MLP are computed for the tokens
    of the M index tensors ``[B, K]``. Equal to ``apply_masks(block(x), masks)`` without ``extras``.
    """
    mixed = attend(block.attn, block.norm1(x), masks, extras)
    if masks is not None:
        x = apply_masks(x, masks)
    x = x + block.drop_path1(block.ls1(mixed))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def attend(
    attention: Attention,
    x: Tensor,
    masks: Tensor | list[Tensor] | None = None,
    extras: TokenExtras | None = None,
) -> Tensor:
    """Output of ``attention`` for its input ``x`` ``[B, N, D]``, at all tokens or those of masks.

    timm's own forward, with the queries of some tokens only, and with what ``extras`` add.
    """
    q, k, v = _queries_keys_values(attention, x, masks, extras)
    if attention.fused_attn:
        # PyTorch's fused kernel on CPUs wants values as wide as the keys; without, attention takes
        # six times as long and forms the N x N matrix.
        mixed = F.scaled_dot_product_attention(
            q,
            k,
            F.pad(v, (0, wider)) if (wider := q.shape[-1] - v.shape[-1]) else v,
            dropout_p=attention.attn_drop.p if attention.training else 0.0,
            scale=attention.scale,  # not that of the wider queries
        )[..., : v.shape[-1]]
    else:
        weights = _weights(attention, q, k, extras).to(v.dtype)
        mixed = attention.attn_drop(weights) @ v
    mixed = attention.norm(mixed.transpose(1, 2).flatten(2))
    return attention.proj_drop(attention.proj(mixed))


@torch.no_grad()
def attention_map(attention: Attention, x: Tensor, extras: TokenExtras | None = None) -> Tensor:
    """Softmax weights ``[B, heads, N, N]`` that ``attention`` gives its input ``x`` ``[B, N, D]``.

    Recomputed from the projection, so that it is the same for every backend: the fused kernels
    never form this matrix.
    """
    q, k, _ = _queries_keys_values(attention, x, None, extras)
    return _weights(attention, q, k, extras)


def _queries_keys_values(
    attention: Attention,
    x: Tensor,
    masks: Tensor | list[Tensor] | None,
    extras: TokenExtras | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``[B, heads, N, head_dim]`` each; with masks queries ``[M * B, ., K, .]``, M times others."""
    if masks is None:
        q, k, v = attention.qkv(x).chunk(3, dim=-1)
        if extras is not None and extras.rois is not None:
            v = v + attention.roi_values(x, extras.rois)
    else:
        masks = as_list(masks)
        width = attention.num_heads * attention.head_dim
        query_weight, other_weight = attention.qkv.weight.split([width, 2 * width])
        query_bias = other_bias = None
        if attention.qkv.bias is not None:
            query_bias, other_bias = attention.qkv.bias.split([width, 2 * width])
        q = F.linear(apply_masks(x, masks), query_weight, query_bias)  # [M * B, K, D]
        kv = F.linear(x, other_weight, other_bias)
        if extras is not None and extras.rois is not None:
            kv = kv + F.pad(attention.roi_values(x, extras.rois), (width, 0))
        if len(masks) > 1:  # of one mask it would be a copy of all tokens
            kv = kv.repeat(len(masks), 1, 1)
        k, v = kv.chunk(2, dim=-1)
    heads = (attention.num_heads, attention.head_dim)
    q, k, v = (part.unflatten(-1, heads).transpose(1, 2) for part in (q, k, v))
    q, k = attention.q_norm(q), attention.k_norm(k)
    if extras is not None and extras.bias is not None:
        q, k = extras.bias.join(q, k, masks)
    return q, k, v


def _weights(attention: Attention, q: Tensor, k: Tensor, extras: TokenExtras | None) -> Tensor:
    """Softmax of the scaled products of queries and keys, float32 ``[B, heads, N, N]``."""
    if extras is None or extras.bias is None:
        return ((q * attention.scale) @ k.transpose(-2, -1)).float().softmax(dim=-1)
    # In float32, as fused kernels add up: the part of a product that cancels in the softmax is
    # large, and rounding it to bfloat16 would drown the rest.
    with torch.autocast(q.device.type, enabled=False):
        return ((q.float() * attention.scale) @ k.float().transpose(-2, -1)).softmax(dim=-1)


def as_list(masks: Tensor | list[Tensor]) -> list[Tensor]:
    """One mask or a list of masks, as a list."""
    return [masks] if isinstance(masks, Tensor) else list(masks)


def apply_masks(x: Tensor, masks: Tensor | list[Tensor]) -> Tensor:
    """Gather tokens: ``x`` ``[B, N, D]`` at M index tensors ``[B, K]`` -> ``[M * B, K, D]``."""
    kept = [x.gather(1, mask.unsqueeze(-1).expand(-1, -1, x.shape[-1])) for mask in as_list(masks)]
    return kept[0] if len(kept) == 1 else torch.cat(kept)


def per_head_at(tokens: Tensor, masks: Tensor | list[Tensor]) -> Tensor:
    """As :func:`apply_masks` for ``[B or 1, heads, N, E]``: ``[M * B, heads, K, E]``."""
    masks = as_list(masks)
    joined = tokens.transpose(1, 2).flatten(2).expand(len(masks[0]), -1, -1)
    return apply_masks(joined, masks).unflatten(-1, (tokens.shape[1], -1)).transpose(1, 2)


def init_weights(module: nn.Module, scheme: str = "release", std: float = 0.02) -> None:
    """Initialise every Linear and Conv2d below ``module`` (method 3, 9).

    ``release``: truncated normal of standard deviation ``std``. ``fan_in``: Linear layers get
    1 / sqrt(fan_in), which keeps the signal of a narrow network as large as its positions.
    Biases are zero and LayerNorm is the identity in both.
    """
    if scheme not in ("release", "fan_in"):
        raise ValueError(f"init is '{scheme}'; allowed: release, fan_in")
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            fan_in = scheme == "fan_in" and isinstance(layer, nn.Linear)
            trunc_normal_(layer.weight, std=layer.in_features**-0.5 if fan_in else std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
