"""Brain gradient positioning: where a token is in time and on the functional axes (method 2)."""

import numpy as np
import torch
from torch import Tensor, nn

POSITION_KINDS = ("mapping", "origin", "anatomical")
TIME_CODES = ("published", "few_patches")
GRADIENTS = "gradient_pos_embed"  # the ROI features' buffer in encoder and predictor


def sincos_1d(dim: int, positions: np.ndarray, code: str = "published") -> np.ndarray:
    """Fixed sin-cos code of ``positions`` ``[M]``: ``[M, dim]``, all sines and then all cosines.

    The h = dim / 2 frequencies are ``10000^(-k/h)``, of which most turn by less than a degree over
    the handful of patches of a clip; with ``few_patches`` ``pi/2 * 8^(-k/h)``, periods from 4 to 32
    patches (method 10).
    """
    if dim % 2:
        raise ValueError(f"a sin-cos code needs an even width, got {dim}")
    if code not in TIME_CODES:
        raise ValueError(f"time_code is '{code}'; allowed: {', '.join(TIME_CODES)}")
    first, ratio = (np.pi / 2, 8.0) if code == "few_patches" else (1.0, 10000.0)
    omega = first * ratio ** (-np.arange(dim // 2) / (dim / 2))
    angles = np.outer(positions, omega)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def check_roi_features(features: Tensor | None, rois: int, add_w: str) -> Tensor | None:
    """A copy of the ROI features ``[1, R, G]`` that ``add_w`` needs; ``origin`` needs none.

    Raises:
        ValueError: for another ``add_w``, and for features that are missing or of another shape.
    """
    if add_w not in POSITION_KINDS:
        raise ValueError(f"add_w is '{add_w}'; allowed: {', '.join(POSITION_KINDS)}")
    if add_w == "origin":
        return None
    if features is None or features.ndim != 3 or features.shape[:2] != (1, rois):
        got = None if features is None else tuple(features.shape)
        raise ValueError(f"add_w '{add_w}' needs ROI features of shape (1, {rois}, G), got {got}")
    return features.detach().float().clone()


class PositionEmbedding(nn.Module):
    """Position of every token of an R x P grid, ``[1, R * P, D]``, ROI-major.

    The first half is the fixed sin-cos code of the time patch. The second half says which ROI:

    - ``mapping``: its gradient ``[G]`` through a trainable projection, rescaled to [-1, 1];
    - ``anatomical``: the same with its MNI centroid (G = 3, mm) in place of the gradient;
    - ``origin``: the fixed sin-cos code of its index, the ablation's baseline.

    Buffer and parameter names are those of the released checkpoints (method 4).

    Args:
        grid: (R, P), ROIs and time patches per ROI.
        dim: width D of a token, a multiple of 4.
        n_features: G, unused by ``origin``.
        time_code: frequencies of the time code, see :func:`sincos_1d`.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        dim: int,
        n_features: int | None,
        add_w: str = "mapping",
        time_code: str = "published",
    ) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"the width must be a multiple of 4 for its positions, got {dim}")
        rois, patches = grid
        self.grid = grid
        self.half = dim // 2
        of_patches = sincos_1d(self.half, np.arange(patches), time_code)
        self.register_buffer("emb_h", torch.from_numpy(np.tile(of_patches, (rois, 1))))
        if add_w == "origin":
            roi_code = sincos_1d(self.half, np.arange(rois))
            self.register_buffer("emb_w", torch.from_numpy(np.repeat(roi_code, patches, axis=0)))
            return
        self.predictor_pos_embed_proj = nn.Linear(n_features, self.half)

    def forward(self, roi_features: Tensor | None) -> Tensor:
        """Positions from ``roi_features`` ``[1, R, G]``, gradients or centroids."""
        if hasattr(self, "emb_w"):
            roi_code = self.emb_w
        else:
            rois, patches = self.grid
            # In float32 whatever the autocast: positions are a handful of numbers that all of the
            # network rests on, and bfloat16 would merge neighbouring ROIs.
            with torch.autocast(self.emb_h.device.type, enabled=False):
                projected = self.predictor_pos_embed_proj(roi_features[0])  # [R, D/2]
                low, high = projected.min(), projected.max()
                scaled = (projected - low) / (high - low) * 2 - 1
            roi_code = scaled.unsqueeze(1).expand(rois, patches, self.half).flatten(0, 1)
        return torch.cat([self.emb_h, roi_code], dim=1).unsqueeze(0)
