"""Attention bias from distance in gradient space and in time (method 10), without an N x N matrix.

Between tokens (r, p) and (r', p') of a head it is ``-|L (g_r - g_r')|^2 - s |p - p'|``. With
``e = L g`` the first part is ``2 e_r.e_r' - |e_r'|^2 - |e_r|^2``, and the softmax over (r', p')
does not see what depends on (r, p) alone. So a few more dimensions of query and key give the bias
exactly, and any attention kernel can be used.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.errors import UserError
from .layers import ExtraDimensions, per_head_at

ATTENTION_BIASES = ("none", "gradient")
# Squared scale of L and slope s that the heads start with: from far to near.
_SCALES, _SLOPES = (1.0, 4.0, 12.0), (0.3, 1.5, 3.0)
_MULTIPLE = 8  # what fused kernels want the width of a head to be a multiple of


class AttentionBias(nn.Module):
    """The bias of a network's attention, one for all of its blocks.

    Parameters: ``transform`` ``[heads, C, G]`` (L) and ``slope`` ``[heads]`` (s). They start as
    multiples of the identity from far to near, without a random draw. Weight decay would pull both
    towards no bias at all, so that networks exclude them (``no_weight_decay``).

    With C < G dimensions L starts with the first C gradients. These come in the order of their
    variance and hardly covary, so that no other start of this rank is nearer to all distances.

    Args:
        grid: (R, P), ROIs and time patches per ROI.
        num_heads: heads of a block.
        roi_features: ``[1, R, G]`` gradients, or centroids, in which distances are taken.
        components: C, dimensions that L maps all of them to; G by default.
        scales: what L starts with, squared, for each head; spread from 1 (far) to 12 by default.
        slopes: what s starts with for each head; spread from .3 to 3 by default.

    Raises:
        UserError: if there are no features, or fewer than ``components``, or if ``scales`` or
            ``slopes`` are not one for each head.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        num_heads: int,
        roi_features: Tensor | None,
        components: int | None = None,
        scales: Sequence[float] | None = None,
        slopes: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if roi_features is None:
            raise UserError(
                "meta.attention_bias 'gradient' needs gradients, and meta.add_w 'origin' has none: "
                "set add_w: mapping, or attention_bias: none."
            )
        there = roi_features.shape[-1]
        components = there if components is None else components
        if components > there:
            raise UserError(
                f"meta.bias_components is {components}, but the ROIs have {there} gradients. "
                f"Give 1 to {there}, or null for all of them."
            )
        self.grid = grid
        identity = torch.eye(components, there)
        if scales is None:
            scales = spread_over_heads(_SCALES, num_heads)
        if slopes is None:
            slopes = spread_over_heads(_SLOPES, num_heads)
        for key, levels in (("bias_scales", scales), ("bias_slopes", slopes)):
            if len(levels) != num_heads:
                raise UserError(
                    f"meta.{key} has {len(levels)} values, but there are {num_heads} heads. Give "
                    "one for each head, or null."
                )
        roots = torch.tensor(scales, dtype=torch.float32).sqrt()
        self.transform = nn.Parameter(roots[:, None, None] * identity)
        self.slope = nn.Parameter(torch.tensor(slopes, dtype=torch.float32))

    def forward(
        self, roi_features: Tensor, scale: float, masks: Sequence[Tensor] | None = None
    ) -> ExtraDimensions:
        """Extra dimensions of all tokens, or of those of M masks ``[B, K]``, then of batch M * B.

        Args:
            roi_features: the network's ``[1, R, G]``.
            scale: what attention multiplies its products by.
        """
        # Positions are computed in float32 and rounded to the type of the attention once. The same
        # rounded positions are query, key and, squared, the constant, so that in bfloat16 the bias
        # is the exact one of ROIs that are moved by at most 1/256 of their place. Rounding the
        # three apart would instead leave errors of the size of |e|^2 / 256, also between
        # neighbours, whose distance is near 0.
        device = self.transform.device.type
        dtype = self.transform.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            place = spread_features(roi_features[0])
            place = (2 / scale) ** 0.5 * place @ self.transform.float().mT  # [heads, R, C]
            place = place.to(dtype)
            norm = -0.5 * place.float().square().sum(-1, keepdim=True)
            pieces = [norm.to(dtype)]
            if dtype != torch.float32:  # its rounding error as a number of its own
                pieces.append((norm - pieces[0].float()).to(dtype))
            later = self._later(dtype)
            slope = (self.slope.float() / scale).to(dtype)[:, None, None]
        query = self._all_tokens(
            [place, *map(torch.ones_like, pieces)], slope * (2 * later - 1), masks
        )
        key = self._all_tokens([place, *pieces], later.expand(len(slope), -1, -1), masks)
        return ExtraDimensions(query, key)

    def width(self, dtype: torch.dtype | None = None) -> int:
        """Dimensions that each head gets in ``dtype``, float32 by default."""
        places = self.transform.shape[1]
        lengths = 1 if dtype in (None, torch.float32) else 2
        return _MULTIPLE * math.ceil((places + lengths + self.grid[1] - 1) / _MULTIPLE)

    def _later(self, dtype: torch.dtype) -> Tensor:
        """Indicators ``[P, P - 1]`` of p > t: ``|p - p'|`` is the number of t that lie between.

        ``|a - a'|`` is ``a + (1 - 2 a) a'`` for indicators a, a', and ``a`` cancels.
        """
        patches = torch.arange(self.grid[1], device=self.slope.device)
        return (patches[:, None] > patches[:-1]).to(dtype)

    def _all_tokens(
        self, of_rois: list[Tensor], of_patches: Tensor, masks: Sequence[Tensor] | None
    ) -> Tensor:
        """Join parts of ROIs ``[heads, R, .]`` and of patches ``[heads, P, .]``, with zeros."""
        rois, patches = self.grid
        parts = [
            *(part.unsqueeze(2).expand(-1, -1, patches, -1) for part in of_rois),
            of_patches.unsqueeze(1).expand(-1, rois, -1, -1),
        ]
        zeros = self.width(of_patches.dtype) - sum(part.shape[-1] for part in parts)
        tokens = F.pad(torch.cat(parts, dim=-1), (0, zeros)).flatten(1, 2)[None]
        if masks is None:
            return tokens
        return per_head_at(tokens, masks)


def make_attention_bias(
    kind: str,
    grid: tuple[int, int],
    num_heads: int,
    roi_features: Tensor | None,
    components: int | None,
    scales: Sequence[float] | None,
    slopes: Sequence[float] | None,
) -> AttentionBias | None:
    """The bias of a network, ``None`` if ``kind`` is ``none``; see :class:`AttentionBias`."""
    if kind not in ATTENTION_BIASES:
        raise ValueError(f"attention_bias is '{kind}'; allowed: {', '.join(ATTENTION_BIASES)}")
    if kind == "none":
        return None
    return AttentionBias(grid, num_heads, roi_features, components, scales, slopes)


def undecayed(network: nn.Module) -> set[str]:
    """Names of parameters of ``network`` that weight decay would pull towards no bias."""
    return {
        f"{name}.{parameter}"
        for name, module in network.named_modules()
        if isinstance(module, AttentionBias)
        for parameter, _ in module.named_parameters()
    }


def spread_over_heads(levels: Sequence[float], num_heads: int) -> list[float]:
    """A level for each head: the first ones, or geometrically from the first to the last."""
    if num_heads <= len(levels):
        return list(levels[:num_heads])
    ratio = levels[-1] / levels[0]
    return [levels[0] * ratio ** (head / (num_heads - 1)) for head in range(num_heads)]


@torch.no_grad()
def spread_features(features: Tensor) -> Tensor:
    """Features ``[R, G]`` as places: centred columns over the square root of their SD.

    All are scaled to a median distance of 1 between ROIs. A constant column stays 0.
    """
    centred = features.float() - features.float().mean(0)
    sd = centred.std(0, correction=0)
    places = centred / torch.where(sd > 0, sd, 1.0).sqrt()
    return places / torch.pdist(places).quantile(0.5)
