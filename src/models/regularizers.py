"""Penalties on features that do not differ between clips (method 11.4).

Both look at the encoder's context tokens after the mean of their position is taken out. What is
left is what differs between clips; over all tokens, the positions alone would pass for variance
(method 9). The mean is over the clips of the micro-batch that have the position in their context:
it is exact and the gradient passes through it, where a running mean would lag behind the encoder
and its lag pass for variance. Positions with one such clip say nothing and are left out.

- ``vicreg``: the variance and covariance terms of VICReg (Bardes, Ponce and LeCun, ICLR 2022) with
  its weights, 25 to 1.
- ``sigreg``: the Epps-Pulley distance of random projections from the standard normal (LeJEPA,
  Balestriero and LeCun 2025, arXiv 2511.08544).
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Regularizer = Literal["none", "vicreg", "sigreg"]
EPS = 1e-4  # added to a variance before its root, whose slope at 0 is infinite
COVARIANCE = 1 / 25  # weight beside the variance
N_DIRECTIONS = 64
STEP, N_KNOTS = 0.625, 8  # the distance is integrated from -5 to 5


def between_clips(features: Tensor, masks: Tensor, n_tokens: int) -> tuple[Tensor, Tensor]:
    """Deviation of features ``[B, K, D]`` at ``masks`` ``[B, K]`` from their position's mean.

    Returns ``[B * K, D]``, scaled by sqrt(n / (n - 1)) where n clips have the position, so that
    their variance is that of the features at a fixed position, and 1 or 0 for each, ``[B * K]``:
    whether there is another clip. Those without are 0.
    """
    tokens, flat = masks.flatten(), features.flatten(0, 1)
    count = flat.new_zeros(n_tokens).index_add(0, tokens, torch.ones_like(flat[:, 0]))[tokens]
    sums = flat.new_zeros(n_tokens, flat.shape[1]).index_add(0, tokens, flat)
    deviation = flat - sums[tokens] / count[:, None]
    shared = (count > 1).to(flat.dtype)
    scale = shared * (count / (count - 1).clamp(min=1)).sqrt()
    return deviation * scale[:, None], shared


def vicreg(deviation: Tensor, shared: Tensor) -> Tensor:
    """How far the SD of each feature is below 1, and how much features covary.

    Arguments are what :func:`between_clips` returns.
    """
    covariance = deviation.T @ deviation / shared.sum().clamp(min=1)  # [D, D]
    variance = covariance.diagonal()
    too_small = F.relu(1 - (variance + EPS).sqrt()).mean()
    off_diagonal = (covariance.square().sum() - variance.square().sum()) / len(variance)
    return too_small + COVARIANCE * off_diagonal


def sigreg(deviation: Tensor, shared: Tensor, directions: Tensor) -> Tensor:
    """Distance of the projections on ``directions`` ``[D, S]`` from the standard normal, averaged.

    That of Epps and Pulley (1983): the squared difference of the characteristic functions,
    integrated under a weight exp(-t^2 / 2); between 0 and, for features that do not differ between
    clips, 0.41. Not multiplied by the number of tokens, which changes with the masks. For the
    backward pass 2 KiB are kept for each context token: with 16 clips of 2,000, 64 MiB.

    The other arguments are what :func:`between_clips` returns.
    """
    knots = STEP * torch.arange(1, N_KNOTS + 1, device=deviation.device, dtype=deviation.dtype)
    normal = torch.exp(-knots.square() / 2)  # its characteristic function, and the weight
    angles = (deviation @ directions.to(deviation.dtype)).unsqueeze(-1) * knots  # [B * K, S, knots]
    share = (shared / shared.sum().clamp(min=1))[:, None, None]
    real, imaginary = (angles.cos() * share).sum(0), (angles.sin() * share).sum(0)  # [S, knots]
    squared = (real - normal).square() + imaginary.square()
    # The trapezoidal rule on both sides of 0, where the difference is 0.
    width = torch.full_like(knots, 2 * STEP)
    width[-1] = STEP
    return (squared * normal * width).sum(-1).mean()


def draw_directions(width: int, seed: int, step: int, device: torch.device) -> Tensor:
    """Unit vectors ``[D, S]``: a pure function of seed and step, drawn on the device."""
    mixed = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])
    generator = torch.Generator(device).manual_seed(mixed >> 1)
    drawn = torch.randn(width, N_DIRECTIONS, generator=generator, device=device)
    return F.normalize(drawn, dim=0)
