"""The last line of a run: whether it learned about the signal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

# Gain in signal R2, over random weights, that counts. Random weights differ among themselves: over
# 8 seeds by an SD of .002 without and .008 with attention bias (quickstart's network and data), two
# of the latter from each other by .011. So however many people are measured, weights that are
# only shuffled pass in 4 % of runs at most.
LEAST_GAIN = 0.02
CONFIDENCE = 0.95  # of the interval over people
SHRUNK = 100  # a between-sample variance this many times smaller than at the start is a collapse


class Gain(NamedTuple):
    """Mean of the paired differences over people, with its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = f"[{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.mean:+.3f} {interval if math.isfinite(self.low) else '(no interval)'}"


def paired_gain(after: Sequence[float], before: Sequence[float]) -> Gain:
    """Mean difference of the same people's values; t interval, infinite for one person."""
    differences = np.subtract(after, before)
    mean = float(differences.mean())
    if len(differences) < 2:
        return Gain(mean, -math.inf, math.inf)
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    half = float(error * stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1))
    return Gain(mean, mean - half, mean + half)


def verdict(monitors: Mapping[str, Mapping[str, Any]]) -> str:
    """One line on what the monitors say about a run.

    "learning" needs a signal R2 that is above that of random weights, person by person: the lower
    end of the interval above :data:`LEAST_GAIN`, and no collapse of the representation. Where the
    mean is above it and the interval is not, the people are too few to say.

    Args:
        monitors: measurements ``last``; ``first``, before the first step; and ``untrained``, of
            random weights, which is the first one unless the run began with other weights.
    """
    first, last, untrained = monitors["first"], monitors["last"], monitors.get("untrained")
    if untrained is None:
        return "not measured: the run began before signal R2 was among the learning monitors."
    if untrained["clips"] != last["clips"]:
        return (
            "NOT CLEAR whether it is learning: the untrained network was measured on other clips "
            "(data, logging.monitor_split or logging.monitor_clips were changed)."
        )
    if math.isnan(first["variance"]):
        return "not measured: the learning monitors need at least 2 held-out clips."
    gain = paired_gain(last["people"], untrained["people"])
    compared = (
        f"signal R2 of {len(last['people'])} held-out people is {last['signal_r2']:+.3f}, "
        f"untrained {untrained['signal_r2']:+.3f}, a difference of {gain}"
    )
    if untrained["people"] != first["people"]:
        compared += f"; {first['signal_r2']:+.3f} with the weights it began with"
    problems = []
    if not last["variance"] * SHRUNK > first["variance"]:
        problems.append(
            f"the targets' variance between clips fell from {first['variance']:.2g} to "
            f"{last['variance']:.2g}: the representation has collapsed"
        )
    if not gain.mean > LEAST_GAIN:
        problems.append(
            f"{compared}: hidden ROIs are not predicted better than with random weights, by "
            f"{LEAST_GAIN:g} at least"
        )
    if problems:
        return f"NOT LEARNING: {'; '.join(problems)}."
    if not gain.low > LEAST_GAIN:
        return (
            f"NOT CLEAR whether it is learning: {compared}: the interval over people does not lie "
            f"above {LEAST_GAIN:g}; more held-out people would make it narrower."
        )
    return (
        f"learning: {compared}; variance between clips {first['variance']:.3g} -> "
        f"{last['variance']:.3g}, RankMe {last['rankme']:.1f}."
    )
