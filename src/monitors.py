"""Learning monitors on held-out people: a falling loss is no evidence of it (method 9, 10)."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from .config import Config
from .datasets.clip_input import ClipInput
from .helper import init_collator, init_dataset
from .models.jepa import Networks, jepa_targets
from .utils.progress import progress_bar
from .utils.ridge import RidgeSums

COLUMNS = ("r2", "r2_clip_constant", "r2_swapped", "variance", "variance_share", "rankme")
N_MASKS = 4  # drawn once, the same for every sample and every measurement
N_FOLDS = 5  # parts of the training people, for the choice of the ridge strength
# An R2, or a difference of two, up to this counts as 0: the mean of few held-out clips is off by a
# part of it, and a predictor that ignores its context beats the swapped one by rounding alone.
LEAST_R2 = 0.01
SHRUNK = 100  # a between-sample variance this many times smaller than at the start is a collapse

Batches = Iterable[tuple[Tensor, Tensor]]
Masks = Sequence[tuple[Tensor, Tensor]]
Autocast = Callable[[], AbstractContextManager]


class Monitors:
    """The monitors of a run: the same clips and masks at every measurement.

    Args:
        config: names the split of the held-out clips, their number and that of training clips.
        clip_input: how runs become clips, as in training.

    Raises:
        UserError: if a split has no runs.
    """

    def __init__(self, config: Config, clip_input: ClipInput) -> None:
        self.held_out = FixedClips(config, config.logging.monitor_split, clip_input)
        self.training = FixedClips(config, "train", clip_input)
        self.masks = fixed_masks(config)

    def measure(
        self, networks: Networks, device: torch.device, autocast: Autocast
    ) -> dict[str, float]:
        """:func:`measure` ``networks``; a value for each of :data:`COLUMNS`."""
        return measure(networks, self.training, self.held_out, self.masks, device, autocast)


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
            see :class:`FixedClips`.
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

        All are NaN with fewer than 2 held-out samples.
    """
    masks = [(context.to(device), target.to(device)) for context, target in masks]
    coefficients = fit_clip_constant(networks, training, masks, device, autocast)
    coefficients = coefficients.to(device, torch.float32)
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
            of_mask.add(targets[:, target], prediction.float(), constant)

    if samples < 2:
        return dict.fromkeys(COLUMNS, math.nan)
    position_mean = position_sum / samples  # [N, D]
    tokens, width = position_mean.shape
    within = second_moment - samples * position_mean.T @ position_mean
    grand_mean = position_mean.mean(0)
    total = second_moment.trace() / (samples * tokens) - grand_mean.square().sum()
    variance = (within.trace() / (samples * tokens)).item()
    unbiased = samples / (samples - 1)
    means = [position_mean[target.cpu()] for _, target in masks]
    pairs = list(zip(sums, means, strict=True))
    over_positions = sum(s.distance_from_positions(mean, samples) for s, mean in pairs) * unbiased
    over_constants = sum(s.distance_from_constants(mean, samples) for s, mean in pairs) * unbiased
    error, swapped = sum(s.error for s in sums), sum(s.swapped_error() for s in sums)
    return {
        "r2": _r2(error, over_positions),
        "r2_clip_constant": _r2(error, over_constants),
        "r2_swapped": _r2(swapped, over_positions),
        "variance": variance * unbiased / width,
        "variance_share": (variance / total).item(),
        "rankme": _rankme(within),
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
                stratum=index,
                weight=len(target),
            )
    if sums is None:
        raise ValueError("no training clips to fit the clip constant to")
    return sums.fit()


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


class FixedClips:
    """The same few clips at every measurement, evenly spread over the runs of a split, none twice.

    They are ordered so that neighbours, last and first among them, are of different people, unless
    one person has more than half of the clips.

    Iteration gives batches: clips ``[B, 1, R, T]`` and the number of each one's person ``[B]`` (of
    the clip itself if there is one person only).
    """

    def __init__(self, config: Config, split: str, clip_input: ClipInput) -> None:
        self._dataset = init_dataset(config, split, clip_input, clips="center")
        self._batch_size = config.data.batch_size
        self._label = f"monitors, clips of {split}"
        n_runs, wanted = len(self._dataset), config.logging.monitor_clips
        per_run = math.ceil(wanted / n_runs)
        clips = [
            (run, start)
            for run in _spread(n_runs, wanted).tolist()
            for start in self._dataset.even_starts(run, per_run)
        ]
        chosen = [clips[i] for i in _spread(len(clips), wanted).tolist()]
        ids = self._dataset.participant_ids[[run for run, _ in chosen]]
        names, people = np.unique(ids, return_inverse=True)
        order = people_apart(people)
        self._clips = [chosen[i] for i in order.tolist()]
        self._people = torch.from_numpy(people[order] if len(names) > 1 else np.arange(len(chosen)))

    def __len__(self) -> int:
        return len(self._clips)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        firsts = range(0, len(self), self._batch_size)
        for first in progress_bar(firsts, desc=self._label, unit="batch", leave=False):
            batch = slice(first, first + self._batch_size)
            clips = [self._dataset.clip(run, start) for run, start in self._clips[batch]]
            yield torch.stack(clips), self._people[batch]


def _spread(n: int, wanted: int) -> np.ndarray:
    """``wanted`` of the numbers below ``n`` at most, evenly spread."""
    return np.linspace(0, n - 1, min(n, wanted)).round().astype(int)


def people_apart(people: np.ndarray) -> np.ndarray:
    """Return an order int ``[S]`` whose neighbours, last and first too, are of different people.

    It exists unless one person has more than half of the samples: people with the most samples
    first, the first half of them at even places and the rest between them.
    """
    counts = np.bincount(people)
    by_person = np.lexsort((people, -counts[people]))
    order = np.empty_like(by_person)
    half = -(-len(people) // 2)
    order[0::2], order[1::2] = by_person[:half], by_person[half:]
    return order


def fixed_masks(config: Config) -> list[tuple[Tensor, Tensor]]:
    """The same few masks at every measurement, other than the training's."""
    collator = init_collator(config, seed=config.meta.seed + 1)
    drawn = collator.examples(N_MASKS)
    return [(torch.from_numpy(m.context[0]), torch.from_numpy(m.targets[0])) for m in drawn]


def verdict(first: dict[str, float], last: dict[str, float]) -> str:
    """One line on what the monitors say about a run.

    A reference is beaten by more than :data:`LEAST_R2`. "learning" is no proof: a trait whose
    effect differs from position to position, or that the clip constant cannot read linearly off the
    mean context token, is not part of the reference.
    """
    if math.isnan(first["variance"]):
        return "not measured: the learning monitors need at least 2 held-out clips."
    problems = []
    if not last["r2"] > LEAST_R2:
        problems.append(
            f"held-out R2 over the position mean is {last['r2']:.3f}: the mean of the targets at "
            "each position is not beaten, and nothing about the signal is learned"
        )
    if not last["r2_clip_constant"] > LEAST_R2:
        problems.append(
            f"held-out R2 over one constant per clip is {last['r2_clip_constant']:.3f}: position "
            "mean plus a constant, linear in the clip's mean context token, is not beaten, so "
            "traits of whole clips explain all that is predicted"
        )
    if not last["r2"] - last["r2_swapped"] > LEAST_R2:
        problems.append(
            f"held-out R2 with another clip's context is {last['r2_swapped']:.3f}, with its own "
            f"{last['r2']:.3f}: the clip's own context is not used"
        )
    if not last["variance"] * SHRUNK > first["variance"]:
        problems.append(
            f"the targets' variance between clips fell from {first['variance']:.2g} to "
            f"{last['variance']:.2g}: the representation has collapsed"
        )
    if problems:
        return "NOT LEARNING: " + "; ".join(problems) + "."
    return (
        f"learning: held-out R2 over the position mean {last['r2']:+.3f}, over one constant per "
        f"clip {last['r2_clip_constant']:+.3f}, with another clip's context "
        f"{last['r2_swapped']:+.3f}; variance between clips {first['variance']:.3g} -> "
        f"{last['variance']:.3g}, RankMe {last['rankme']:.1f}."
    )


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
