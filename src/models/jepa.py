"""The pretraining objective: predict what the target encoder says about hidden tokens (spec 5)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.layers import apply_masks


@torch.no_grad()
def jepa_targets(target_encoder: nn.Module, x: Tensor) -> Tensor:
    """Target features ``[B, N, D]`` of runs ``x`` ``[B, 1, R, T]``: LayerNorm without affine.

    The target encoder sees the full grid.
    """
    features = target_encoder(x)
    return F.layer_norm(features, features.shape[-1:])


def jepa_loss(
    encoder: nn.Module,
    target_encoder: nn.Module,
    predictor: nn.Module,
    x: Tensor,
    masks_enc: Tensor,
    masks_pred: Tensor,
) -> Tensor:
    """Smooth-L1 between prediction and target, averaged over tokens and features.

    Args:
        x: ``[B, 1, R, T]`` normalised runs.
        masks_enc: LongTensor ``[B, K]``, the context tokens.
        masks_pred: LongTensor ``[B, Q]``, the target tokens.
    """
    target = apply_masks(jepa_targets(target_encoder, x), masks_pred)
    prediction = predictor(encoder(x, masks_enc), masks_enc, masks_pred)
    return F.smooth_l1_loss(prediction, target)


@torch.no_grad()
def update_target_encoder(target_encoder: nn.Module, encoder: nn.Module, momentum: float) -> None:
    """``target <- momentum * target + (1 - momentum) * encoder``, for all tensors at once."""
    targets, sources = list(target_encoder.parameters()), list(encoder.parameters())
    torch._foreach_lerp_(targets, sources, 1.0 - momentum)
