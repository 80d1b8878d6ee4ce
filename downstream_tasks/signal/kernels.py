"""Kernels between ROIs: weights that fall with their distance in gradient space."""

import numpy as np
import torch
from torch import Tensor

# Of Gaussian kernels, in units of the median distance between two ROIs.
WIDTHS = (0.1, 0.15, 0.25, 0.4, 0.6, 1.0, 1.6)


def distances(features: np.ndarray) -> np.ndarray:
    """Distances ``[R, R]`` of ROIs by gradients (or centroids) ``[R, G]``, of median 1.

    Columns are divided by the square root of their SD, so that the first gradients count more, and
    not for all (method 10).
    """
    sd = features.std(axis=0)
    scaled = features[:, sd > 0] / np.sqrt(sd[sd > 0])
    difference = scaled[:, None] - scaled[None]
    found = np.sqrt((difference**2).sum(-1))
    return found / np.median(found[np.triu_indices(len(found), 1)])


def kernel_weights(distance: np.ndarray, hidden: np.ndarray, visible: np.ndarray) -> Tensor:
    """Weights ``[widths, H, V]`` of visible ROIs for each hidden one, of sum 1."""
    apart = torch.from_numpy(distance[np.ix_(hidden, visible)])
    exponents = [-(apart**2) / (2 * width**2) for width in WIDTHS]
    return torch.stack(exponents).softmax(-1).float()
