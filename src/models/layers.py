"""What encoder and predictor share: transformer blocks, masking, initialisation."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

LAYER_NORM = partial(nn.LayerNorm, eps=1e-6)
# ``flash_attn`` is the release's name; PyTorch's fused attention picks the flash kernel by itself.
FUSED_ATTENTION = {"normal": False, "sdpa": True, "flash_attn": True}


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


def run_blocks(blocks: nn.ModuleList, x: Tensor, gradient_checkpointing: bool = False) -> Tensor:
    """Apply the blocks to ``x`` ``[B, N, D]``; checkpointing recomputes them in backward."""
    if gradient_checkpointing and torch.is_grad_enabled():
        return checkpoint_seq(blocks, x, use_reentrant=False)
    for block in blocks:
        x = block(x)
    return x


def block_at(block: Block, x: Tensor, masks: Tensor | list[Tensor]) -> Tensor:
    """Output of ``block`` at some tokens only: ``x`` ``[B, N, D]`` -> ``[M * B, K, D]``.

    Keys and values are those of all tokens; queries, projection and MLP are computed for the tokens
    of the M index tensors ``[B, K]``. Equal to ``apply_masks(block(x), masks)``.
    """
    attention, masks = block.attn, as_list(masks)
    normed = block.norm1(x)
    width = attention.num_heads * attention.head_dim
    query_weight, other_weight = attention.qkv.weight.split([width, 2 * width])
    query_bias = other_bias = None
    if attention.qkv.bias is not None:
        query_bias, other_bias = attention.qkv.bias.split([width, 2 * width])
    q = F.linear(apply_masks(normed, masks), query_weight, query_bias)  # [M * B, K, D]
    kv = F.linear(normed, other_weight, other_bias)
    if len(masks) > 1:  # of one mask it would be a copy of all tokens
        kv = kv.repeat(len(masks), 1, 1)
    k, v = kv.chunk(2, dim=-1)
    heads = (attention.num_heads, attention.head_dim)
    q, k, v = (part.unflatten(-1, heads).transpose(1, 2) for part in (q, k, v))
    q, k = attention.q_norm(q), attention.k_norm(k)
    dropout = attention.attn_drop.p if attention.training else 0.0
    if attention.fused_attn:
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    else:
        weights = ((q * attention.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        mixed = attention.attn_drop(weights) @ v
    mixed = attention.norm(mixed.transpose(1, 2).flatten(2))
    mixed = attention.proj_drop(attention.proj(mixed))
    x = apply_masks(x, masks)
    x = x + block.drop_path1(block.ls1(mixed))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


@torch.no_grad()
def attention_map(attention: Attention, x: Tensor) -> Tensor:
    """Softmax weights ``[B, heads, N, N]`` that ``attention`` gives its input ``x`` ``[B, N, D]``.

    Recomputed from the projection, so that it is the same for every backend: the fused kernels
    never form this matrix.
    """
    B, N, _ = x.shape
    qkv = attention.qkv(x).reshape(B, N, 3, attention.num_heads, attention.head_dim)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, N, head_dim]
    q, k = attention.q_norm(q), attention.k_norm(k)
    return ((q * attention.scale) @ k.transpose(-2, -1)).float().softmax(dim=-1)


def as_list(masks: Tensor | list[Tensor]) -> list[Tensor]:
    """One mask or a list of masks, as a list."""
    return [masks] if isinstance(masks, Tensor) else list(masks)


def apply_masks(x: Tensor, masks: Tensor | list[Tensor]) -> Tensor:
    """Gather tokens: ``x`` ``[B, N, D]`` at M index tensors ``[B, K]`` -> ``[M * B, K, D]``."""
    kept = [x.gather(1, mask.unsqueeze(-1).expand(-1, -1, x.shape[-1])) for mask in as_list(masks)]
    return kept[0] if len(kept) == 1 else torch.cat(kept)


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
