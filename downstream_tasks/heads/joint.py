"""A head on two sets of features together: what does the second add to what the first knows?"""

import dataclasses

import numpy as np
from sklearn.preprocessing import StandardScaler

from downstream_tasks.cohort.problem import Problem
from downstream_tasks.config import HeadsConfig
from downstream_tasks.heads.estimators import fit_head, span_rotation
from downstream_tasks.heads.result import HeadResult
from downstream_tasks.scoring.metrics import direction

# Shares of the second block. 0 is among them: the head of the first block alone, so that features
# that add nothing can be left out. In simulated ridge regressions on 40 people, 24 or 1000 features
# of noise raised FC's squared error by 4 % or not at all (a regression on out-of-fold predictions
# of the two: 6 and 3 %); those that know something new lowered it by 56 and 72 % (30 and 45 %).
SHARES = (0.0, 0.1, 0.3, 0.6, 0.9)

_CHUNK = 1024  # examples


def fit_joint(
    kind: str, base: np.ndarray, added: np.ndarray, problem: Problem, config: HeadsConfig
) -> HeadResult:
    """Logistic, ridge or Cox regression on ``base`` ``[n, F]`` and ``added`` ``[n, G]`` together.

    Each block is standardised and has the same total variance, whatever its width, times a share:
    100,000 connections do not drown 768 features, nor 768 noisy features a connectome. Share and
    penalty are picked together by the score that picks the penalty of :func:`fit_head`, of equal
    scores the smaller share.
    """
    first = _block(base, problem, config)
    second = _block(added, problem, config)
    train = problem.split.train
    sizes = [np.square(block[train]).sum(axis=1).mean() for block in (first, second)]
    second *= np.sqrt(sizes[0] / sizes[1]) if sizes[1] > 0 else 0.0
    fits = []
    for share in SHARES:
        blocks = np.hstack([np.sqrt(1 - share) * first, np.sqrt(share) * second])
        blocks = blocks if share else first
        fits.append(fit_head(kind, blocks, problem, config, standardise=False))
    sign = direction(problem.metric)
    best = max(range(len(fits)), key=lambda i: sign * fits[i].chosen["selection_score"])
    chosen = fits[best].chosen | {"share": SHARES[best]}
    return dataclasses.replace(fits[best], chosen=chosen, linear=None)  # of the blocks, not of base


def _block(features: np.ndarray, problem: Problem, config: HeadsConfig) -> np.ndarray:
    """Standardised features in the span of the training people, ``[n, <= max_components]``."""
    train = problem.split.train
    scaler = StandardScaler().fit(features[train])
    fit = scaler.transform(features[train])
    rotation = span_rotation(fit, config.max_components, problem.seed)
    parts = []
    for start in range(0, len(features), _CHUNK):
        scaled = scaler.transform(features[start : start + _CHUNK])
        parts.append(scaled if rotation is None else rotation.transform(scaled))
    return np.concatenate(parts).astype(np.float64)
