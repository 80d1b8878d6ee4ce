"""Times to an event: how they are written as one number, and the concordance of risks with them.

A follow-up of ``t`` is ``+t`` if it ended with the event and ``-t`` if without it (censored): one
number a person, which goes where a class or a target goes.
"""

import numpy as np

SURVIVAL_METRICS = ("c_index",)
_CHUNK_ELEMENTS = 2_000_000  # pairs, or weights of pairs, held at once


def signed_times(time: np.ndarray, happened: np.ndarray) -> np.ndarray:
    """Times as above; they must be above 0."""
    return np.where(happened, time, -np.asarray(time))


def times_and_events(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Times and whether the event was seen, of what :func:`signed_times` gave."""
    return np.abs(y), y > 0


def weighted_concordance(y: np.ndarray, risk: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Harrell's C under each row of ``weights`` ``[W, n]``, as ``[W]``; NaN without a pair.

    The share of pairs in which who had the event first has the higher risk; equal risks count half.
    A pair counts if the one with the event was seen for a shorter time, or for as long as one
    without it (who had it later, if at all). Two events at one time are no pair.
    """
    time, happened = times_and_events(y)
    first = np.flatnonzero(happened)
    concordant, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    size = max(1, _CHUNK_ELEMENTS // max(len(y), len(weights)))
    for start in range(0, len(first), size):
        i = first[start : start + size]
        later = (time[i, None] < time) | ((time[i, None] == time) & ~happened)
        wins = later * (0.5 * (risk[i, None] > risk) + 0.5 * (risk[i, None] >= risk))
        pairs += (weights @ later.T.astype(float) * weights[:, i]).sum(axis=1)
        concordant += (weights @ wins.T * weights[:, i]).sum(axis=1)
    return concordant / pairs


def kaplan_meier(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Times of events, from 0 on, and the share without the event just after each."""
    time, happened = times_and_events(y)
    steps = np.unique(time[happened])
    at_risk = (time >= steps[:, None]).sum(axis=1)
    events = ((time == steps[:, None]) & happened).sum(axis=1)
    return np.r_[0.0, steps], np.r_[1.0, np.cumprod(1 - events / at_risk)]
