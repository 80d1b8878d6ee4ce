"""Readouts: what is kept of the tokens of a clip, ``[B, R, P, D]``."""

import torch
from torch import Tensor

from downstream_tasks.features.baselines import MAX_CORRELATION


def mean_of_tokens(tokens: Tensor) -> Tensor:
    """Mean of all tokens, ``[B, D]``."""
    return tokens.mean(dim=(1, 2))


def mean_of_rois(tokens: Tensor) -> Tensor:
    """Mean of each ROI's tokens, ``[B, R, D]``."""
    return tokens.mean(dim=2)


def feature_connectivity(tokens: Tensor) -> Tensor:
    """Correlations between ROIs over patches and width, Fisher z, ``[B, R (R - 1) / 2]``.

    The upper triangle in the order of FC, so that the two can be compared entry by entry. Every
    dimension of the width is z-scored over the tokens of the clip first: tokens share a large mean
    and a few large dimensions, which would make all ROIs alike. An ROI whose tokens do not vary has
    no correlation; its entries are 0.
    """
    mean = tokens.mean(dim=(1, 2), keepdim=True)
    sd = tokens.std(dim=(1, 2), keepdim=True, unbiased=False)
    # What varies by rounding only is constant.
    scaled = torch.where(sd > 1e-6 * mean.abs().clamp_min(1e-6), (tokens - mean) / sd, 0.0)
    of_roi = scaled.flatten(2)  # [B, R, P D]
    of_roi = of_roi - of_roi.mean(dim=2, keepdim=True)
    norm = of_roi.norm(dim=2, keepdim=True)
    unit = torch.where(norm > 0, of_roi / norm, 0.0)
    first, second = torch.triu_indices(tokens.shape[1], tokens.shape[1], offset=1)
    upper = (unit @ unit.mT)[:, first, second]
    return upper.clamp(-MAX_CORRELATION, MAX_CORRELATION).atanh()
