"""Signal monitors: what the networks know of the signal of hidden tokens (method 10, 11.5).

The network that sees is the target encoder, which evaluation uses too. What is read out is the last
LayerNorm of the predictor at the hidden tokens: whatever a head predicts is linear in it, of the
latent features as of the signal, so that one definition serves every objective.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..models.jepa import Networks
from ..models.objective import hidden_signal
from ..utils.ridge import RidgeSums
from .clips import N_FOLDS, Autocast, Batches

COLUMNS = ("signal_r2", "forecast_r2")
HALVES = 17  # number of the stream of random numbers that halves the ROIs; training has others


class Question(NamedTuple):
    """Tokens that are seen ``[K]`` and tokens whose signal is asked for ``[Q]``."""

    seen: Tensor
    hidden: Tensor


class Errors(NamedTuple):
    """Squared errors of the read-out, and of the training mean, for each clip ``[S]``."""

    of_read_out: np.ndarray
    of_mean: np.ndarray

    def r2(self) -> float:
        """1 - SSE / SST over all clips."""
        return _r2(self.of_read_out.sum(), self.of_mean.sum())

    def r2_of_people(self, ids: np.ndarray) -> list[float]:
        """The same for each person, sorted by the participant ``ids`` ``[S]`` of the clips."""
        _, people = np.unique(ids, return_inverse=True)
        sums = (np.bincount(people, weights=errors) for errors in self)
        return [_r2(sse, sst) for sse, sst in zip(*sums, strict=True)]


def imputation(grid: tuple[int, int], seed: int) -> list[Question]:
    """Hide one random half of the ROIs at all times, then the other: each ROI is asked for once."""
    rois, patches = grid
    order = np.random.default_rng([HALVES, seed]).permutation(rois)
    halves = (np.sort(order[: rois // 2]), np.sort(order[rois // 2 :]))
    tokens = [(half[:, None] * patches + np.arange(patches)).ravel() for half in halves]
    first, second = (torch.from_numpy(half) for half in tokens)
    return [Question(first, second), Question(second, first)]


def forecast(grid: tuple[int, int]) -> list[Question]:
    """Hide the last patch of all ROIs."""
    rois, patches = grid
    tokens = torch.arange(rois * patches).reshape(rois, patches)
    return [Question(tokens[:, :-1].flatten(), tokens[:, -1])]


@torch.no_grad()
def measure(
    networks: Networks,
    training: Batches,
    held_out: Batches,
    questions: Sequence[Question],
    grid: tuple[int, int],
    device: torch.device,
    autocast: Autocast,
) -> Errors:
    """Errors of a linear read-out of the hidden signal on people that it was not fitted to.

    The read-out is a ridge regression from the features to the frames of a hidden token: one map
    for all ROIs and an intercept for each, its strength chosen by cross-validation over people.

    Args:
        training: clips ``[B, 1, R, T]`` that the read-out is fitted to, and nothing else is, with
            the number of each one's person ``[B]``.
        held_out: the same of the clips that are scored.
        grid: (R, P): ROIs and patches.
    """
    ask = partial(_ask, networks, questions, grid, device, autocast)
    sums = None
    for x, people in training:
        for features, signal, rois in ask(x):
            if sums is None:
                sums = RidgeSums(N_FOLDS, grid[0], features.shape[-1], signal.shape[-1])
            folds = (people % N_FOLDS)[:, None].expand(rois.shape)
            sums.add(*(tensor.flatten(0, 1) for tensor in (features, signal, folds, rois)))
    if sums is None:
        raise ValueError("no training clips to fit the read-out to")
    fit = sums.fit()

    errors = []
    for x, _ in held_out:
        of_batch = torch.zeros(2, len(x), dtype=torch.float64)
        for features, signal, rois in ask(x):
            features, signal = features.cpu().double(), signal.cpu().double()
            guesses = (fit.predict(features, rois), fit.mean_y[rois])
            of_batch += torch.stack([(signal - g).square().sum((1, 2)) for g in guesses])
        errors.append(of_batch.numpy())
    return Errors(*np.concatenate(errors, axis=1))


def _ask(
    networks: Networks,
    questions: Sequence[Question],
    grid: tuple[int, int],
    device: torch.device,
    autocast: Autocast,
    x: Tensor,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each question: features ``[B, Q, d]``, signal ``[B, Q, F]``, ROIs ``[B, Q]`` (host).

    The signal is the F frames of a hidden token minus the ROI's mean over the clip: a level that a
    person or a clip has in an ROI is a trait, known without knowing anything of the dynamics.
    """
    _, patches = grid
    x = x.to(device, non_blocking=True)
    fluctuations = x - x.mean(-1, keepdim=True)
    for question in questions:
        seen, hidden = (tokens.to(device).expand(len(x), -1) for tokens in question)
        with autocast():
            context = networks.target_encoder(x, seen)
            features = networks.predictor.features(context, seen, hidden)
        signal = hidden_signal(fluctuations, hidden, x.shape[-1] // patches)
        yield features.float(), signal, (question.hidden // patches).expand(len(x), -1)


def _r2(sse: float, sst: float) -> float:
    return float(1.0 - sse / sst) if sst > 0 else math.nan
