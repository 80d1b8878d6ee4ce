"""Latent monitors: how well the predictor predicts latent targets, and whether these collapse.

A positive R2 here is no evidence of knowledge about the signal (method 10); see ``signal``.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import Config
from ..helper import init_collator
from ..models.jepa import Networks, jepa_targets
from ..utils.ridge import RidgeSums
from .clips import N_FOLDS, Autocast, Batches

COLUMNS = ("r2", "r2_clip_constant", "r2_swapped", "variance", "variance_share", "rankme")
N_MASKS = 2  # at least, and of each mode; the same for every sample and every measurement

Masks = Sequence[tuple[Tensor, Tensor]]


@torch.no_grad()
def measure(
    networks: Networks,
    training: Batches,
    held_out: Batches,
    masks: Masks,
    device: torch.device,
    autocast: Autocast,
) -> dict[str, float]:
    """Measure predictions and targets on samples that the networks were not trained on.

    All samples share the same masks, so that a position can be compared across samples. Memory does
    not grow with the number of samples: sums are kept, in float64 on the host. Fitting the clip
    constant to as many training samples makes a measurement 1.9 times as long (the quickstart's).

    Args:
        training: clips ``[B, 1, R, T]`` of training people and, for each, a number of its person
            ``[B]``; the clip constant below is fitted to them and to nothing else.
        held_out: the same of the samples to measure. The context of each clip is also tried on the
            next one (the last one's on the first), so neighbours should be of different people:
            see :class:`~.clips.FixedClips`.
        masks: pairs of token indices (context ``[K]``, targets ``[Q]``).

    Returns:
        - ``r2``: 1 - squared error of the predictor / squared distance of the targets from their
          mean at each position. That mean is taken over these S samples and the distance corrected
          by S / (S - 1), so a predictor of each position's true mean, and nothing else, has 0.
        - ``r2_clip_constant``: the same over a stronger reference, the mean at each position plus
          one constant per clip: a vector ``[D]``, the same at all target positions, linear in the
          clip's mean context token. A predictor of position means and of properties of the whole
          clip that this map can read, such as a level that all positions share, but of nothing
          local in ROI and time has 0.
        - ``r2_swapped``: ``r2`` of the predictions from another clip's context.
        - ``variance``: variance of the targets across samples at a fixed position, averaged over
          positions and features. It falls to 0 in a collapse, which ratios and ranks can hide.
        - ``variance_share``: the same as a share of the variance over samples and positions.
        - ``rankme``: effective rank of the targets after each position's mean is taken out
          (RankMe: exponential of the entropy of the singular values' distribution).

        All are NaN with fewer than 2 held-out samples. Without the first three, which ask the
        predictor, where the objective has it predict no latents: they would be those of a
        projection that nothing trained.
    """
    masks = [(context.to(device), target.to(device)) for context, target in masks]
    if networks.objective.latent:
        coefficients = fit_clip_constant(networks, training, masks, device, autocast)
        coefficients = coefficients.to(device, torch.float32)
    else:
        masks = []
    samples = 0
    position_sum: Tensor | float = 0.0  # [N, D]
    second_moment: Tensor | float = 0.0  # [D, D]
    sums = [_MaskSums() for _ in masks]
    for x, _ in held_out:
        x = x.to(device, non_blocking=True)
        targets = _targets(networks, x, autocast)  # [B, N, D]
        flat = targets.flatten(0, 1)
        second_moment = second_moment + (flat.T @ flat).cpu().double()
        position_sum = position_sum + targets.sum(0).cpu().double()
        samples += len(x)
        for (context, target), of_mask in zip(masks, sums, strict=True):
            masks_enc, masks_pred = context.expand(len(x), -1), target.expand(len(x), -1)
            with autocast():
                seen = networks.encoder(x, masks_enc)
                prediction = networks.predictor(seen, masks_enc, masks_pred)
            constant = seen.float().mean(1) @ coefficients
            # In the units of the targets under a LayerNorm, so that runs can be compared.
            prediction = networks.as_features(prediction.float(), masks_pred)
            of_mask.add(targets[:, target], prediction, constant)

    if samples < 2:
        return dict.fromkeys(COLUMNS, math.nan)
    position_mean = position_sum / samples  # [N, D]
    tokens, width = position_mean.shape
    within = second_moment - samples * position_mean.T @ position_mean
    grand_mean = position_mean.mean(0)
    total = second_moment.trace() / (samples * tokens) - grand_mean.square().sum()
    variance = (within.trace() / (samples * tokens)).item()
    unbiased = samples / (samples - 1)
    spread = {
        "variance": variance * unbiased / width,
        "variance_share": (variance / total).item(),
        "rankme": _rankme(within),
    }
    if not masks:
        return spread
    means = [position_mean[target.cpu()] for _, target in masks]
    pairs = list(zip(sums, means, strict=True))
    over_positions = sum(s.distance_from_positions(mean, samples) for s, mean in pairs) * unbiased
    over_constants = sum(s.distance_from_constants(mean, samples) for s, mean in pairs) * unbiased
    error, swapped = sum(s.error for s in sums), sum(s.swapped_error() for s in sums)
    return {
        "r2": _r2(error, over_positions),
        "r2_clip_constant": _r2(error, over_constants),
        "r2_swapped": _r2(swapped, over_positions),
        **spread,
    }


@torch.no_grad()
def fit_clip_constant(
    networks: Networks, batches: Batches, masks: Masks, device: torch.device, autocast: Autocast
) -> Tensor:
    """Fit a map ``[D, D]`` from a clip's mean context token to its mean target token.

    Ridge regression of the mean target token on the mean context token, with an intercept for each
    mask, which takes the position means up. Its strength is chosen by cross-validation over people.
    """
    sums = None
    for x, people in batches:
        x = x.to(device, non_blocking=True)
        targets = _targets(networks, x, autocast)
        for index, (context, target) in enumerate(masks):
            with autocast():
                seen = networks.encoder(x, context.expand(len(x), -1)).float()
            if sums is None:
                sums = RidgeSums(N_FOLDS, len(masks), seen.shape[-1], targets.shape[-1])
            # Weighted as in the error to be measured, which is summed over target tokens.
            sums.add(
                seen.mean(1),
                targets[:, target].mean(1),
                people % N_FOLDS,
                torch.full_like(people, index),
                weight=len(target),
            )
    if sums is None:
        raise ValueError("no training clips to fit the clip constant to")
    return sums.fit().coefficients


class _MaskSums:
    """Squared errors and distances at the targets of one mask, summed over clips."""

    def __init__(self) -> None:
        self.error = 0.0
        self._swapped = 0.0
        self._targets = 0.0
        self._residuals = 0.0
        self._constants: Tensor | float = 0.0  # [D]
        self._first_targets: Tensor | None = None  # [Q, D]
        self._last_prediction: Tensor | None = None  # [Q, D]

    def add(self, targets: Tensor, prediction: Tensor, constant: Tensor) -> None:
        """Add clips: ``targets`` and ``prediction`` ``[B, Q, D]``, ``constant`` ``[B, D]``."""
        self.error += (prediction - targets).square().sum().item()
        self._targets += targets.square().sum().item()
        self._residuals += (targets - constant[:, None]).square().sum().item()
        self._constants = self._constants + constant.sum(0).cpu().double()
        others = prediction[:-1]
        if self._last_prediction is None:
            self._first_targets = targets[0]
            next_targets = targets[1:]
        else:
            others = torch.cat([self._last_prediction[None], others])
            next_targets = targets
        self._swapped += (others - next_targets).square().sum().item()
        self._last_prediction = prediction[-1]

    def swapped_error(self) -> float:
        """Squared error of the predictions for the clip before, the first's being the last."""
        closing = (self._last_prediction - self._first_targets).square().sum().item()
        return self._swapped + closing

    def distance_from_positions(self, mean: Tensor, samples: int) -> float:
        """Squared distance of the targets from their mean at each position, ``[Q, D]``."""
        return self._targets - samples * mean.square().sum().item()

    def distance_from_constants(self, mean: Tensor, samples: int) -> float:
        """The same of what the clips' constants leave of the targets."""
        mean = mean - self._constants / samples
        return self._residuals - samples * mean.square().sum().item()


def fixed_masks(config: Config) -> list[tuple[Tensor, Tensor]]:
    """The same few masks at every measurement, other than the training's."""
    collator = init_collator(config, seed=config.meta.seed + 1)
    drawn = collator.examples(N_MASKS)
    return [(torch.from_numpy(m.context[0]), torch.from_numpy(m.targets[0])) for m in drawn]


def _targets(networks: Networks, x: Tensor, autocast: Autocast) -> Tensor:
    with autocast():
        return jepa_targets(networks.target_encoder, x).float()


def _r2(squared_error: float, reference: float) -> float:
    return 1.0 - squared_error / reference if reference > 0 else math.nan


def _rankme(second_moment: Tensor) -> float:
    """RankMe from ``X^T X`` ``[D, D]``: its eigenvalues are the squared singular values of X."""
    if not second_moment.isfinite().all():
        return math.nan
    squared = torch.linalg.eigvalsh(second_moment)
    # X^T X was summed in float32: below this, an eigenvalue is its rounding error.
    singular = squared[squared > 1e-6 * squared.max()].sqrt()
    share = singular / singular.sum()
    return torch.exp(-(share * share.log()).sum()).item()
