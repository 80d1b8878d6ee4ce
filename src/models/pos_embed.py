"""Brain gradient positioning: where a token is in time and on the functional axes (spec 2)."""

import numpy as np
import torch
from torch import Tensor, nn

POSITION_KINDS = ("mapping", "origin", "anatomical")


def sincos_1d(dim: int, positions: np.ndarray) -> np.ndarray:
    """Fixed sin-cos code of ``positions`` ``[M]``: ``[M, dim]``, all sines and then all cosines."""
    if dim % 2:
        raise ValueError(f"a sin-cos code needs an even width, got {dim}")
    omega = 10000.0 ** (-np.arange(dim // 2) / (dim / 2))
    angles = np.outer(positions, omega)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class PositionEmbedding(nn.Module):
    """Position of every token of an R x P grid, ``[1, R * P, D]``, ROI-major.

    The first half is the fixed sin-cos code of the time patch. The second half says which ROI:

    - ``mapping``: its gradient ``[G]`` through a trainable projection, rescaled to [-1, 1];
    - ``anatomical``: the same with its MNI centroid (G = 3, mm) in place of the gradient;
    - ``origin``: the fixed sin-cos code of its index, the ablation's baseline.

    Buffer and parameter names are those of the released checkpoints (spec 4). The ROI features
    themselves are not part of the state dict, as in the release.

    Args:
        grid: (R, P), ROIs and time patches per ROI.
        dim: width D of a token, a multiple of 4.
        roi_features: ``[1, R, G]`` gradients or centroids; unused by ``origin``.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        dim: int,
        roi_features: Tensor | None,
        add_w: str = "mapping",
    ) -> None:
        super().__init__()
        if add_w not in POSITION_KINDS:
            raise ValueError(f"add_w is '{add_w}'; allowed: {', '.join(POSITION_KINDS)}")
        if dim % 4:
            raise ValueError(f"the width must be a multiple of 4 for its positions, got {dim}")
        rois, patches = grid
        self.grid = grid
        self.half = dim // 2
        time_code = sincos_1d(self.half, np.arange(patches))
        self.register_buffer("emb_h", torch.from_numpy(np.tile(time_code, (rois, 1))))
        if add_w == "origin":
            roi_code = sincos_1d(self.half, np.arange(rois))
            self.register_buffer("emb_w", torch.from_numpy(np.repeat(roi_code, patches, axis=0)))
            return
        if roi_features is None or roi_features.ndim != 3 or roi_features.shape[:2] != (1, rois):
            got = None if roi_features is None else tuple(roi_features.shape)
            raise ValueError(
                f"add_w '{add_w}' needs ROI features of shape (1, {rois}, G), got {got}"
            )
        features = roi_features.detach().float().clone()
        self.register_buffer("roi_features", features, persistent=False)
        self.predictor_pos_embed_proj = nn.Linear(features.shape[-1], self.half)

    def forward(self) -> Tensor:
        if hasattr(self, "emb_w"):
            roi_code = self.emb_w
        else:
            rois, patches = self.grid
            # In float32 whatever the autocast: positions are a handful of numbers that all of the
            # network rests on, and bfloat16 would merge neighbouring ROIs.
            with torch.autocast(self.emb_h.device.type, enabled=False):
                projected = self.predictor_pos_embed_proj(self.roi_features[0])  # [R, D/2]
                low, high = projected.min(), projected.max()
                scaled = (projected - low) / (high - low) * 2 - 1
            roi_code = scaled.unsqueeze(1).expand(rois, patches, self.half).flatten(0, 1)
        return torch.cat([self.emb_h, roi_code], dim=1).unsqueeze(0)
