"""Fingerprints of people in two runs: how alike they are, and who is taken for whom."""

import numpy as np

from downstream_tasks.scoring.weighted import ScoredRun

_ROUNDING = 1e-6  # relative; what differs by less is the same number computed twice


def identify(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match each person of ``first`` ``[n, F]`` to the most correlated row of ``second``, and back.

    Both results are ``[n]``; row i of the two inputs is the same person.
    """
    return matched(similarities(first, second))


def matched(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most similar column of each row of ``[n, n]``, and row of each column."""
    return similarity.argmax(axis=1), similarity.argmax(axis=0)


def similarities(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson correlation of each row of ``first`` ``[n, F]`` with each of ``second``, ``[n, n]``.

    Where the vectors of all people are one (but for the rounding of float32) it is 0 everywhere:
    everyone is matched to row 0, so that one is identified, as by any constant guess.
    """
    both = np.concatenate([first, second])
    if (np.ptp(both, axis=0) <= _ROUNDING * np.abs(both).max(axis=0)).all():
        return np.zeros((len(first), len(second)))

    def unit(features: np.ndarray) -> np.ndarray:
        centred = features - features.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(centred, axis=1, keepdims=True)
        return np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)

    return unit(first) @ unit(second).T


def z_score(features: np.ndarray, n: int) -> np.ndarray:
    """Each feature z-scored over the people of each run; the first ``n`` rows are the first runs.

    A feature in which no one differs (by more than the rounding of float32) becomes 0.
    """
    parts = []
    for part in (features[:n], features[n:]):
        sd, size = part.std(axis=0), np.abs(part).max(axis=0)
        centred = part - part.mean(axis=0)
        parts.append(
            np.divide(centred, sd, out=np.zeros_like(centred), where=sd > _ROUNDING * size)
        )
    return np.concatenate(parts)


def score_hits(
    forward: np.ndarray, backward: np.ndarray, clusters: np.ndarray
) -> dict[str, ScoredRun]:
    """Who was identified, as predictions whose accuracy is the rate: both ways, and either alone.

    ``forward`` and ``backward`` ``[n]`` are whom each person was matched to.
    """
    n = len(forward)
    hits = {
        "identification": np.r_[forward, backward] == np.tile(np.arange(n), 2),
        "forward": forward == np.arange(n),
        "backward": backward == np.arange(n),
    }
    return {
        name: ScoredRun(
            np.zeros(len(hit), dtype=int),
            np.stack([hit, ~hit], axis=1).astype(float),
            np.tile(clusters, len(hit) // n),
        )
        for name, hit in hits.items()
    }
