"""Cox regression with a ridge penalty, for features that may be as many as the people.

``scikit-survival`` has the same model, whose solver loops over people in Python (a minute for one
fit of 400 people in their own span, without converging); tests hold the two equal.
"""

import warnings

import numpy as np
from scipy.linalg import solve
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning

from downstream_tasks.scoring.survival import times_and_events

_MAX_ITERATIONS = 100
_MAX_HALVINGS = 30
_TOLERANCE = 1e-8  # of what a step gains in the penalised log likelihood, a sum over events


class RidgeCox(BaseEstimator):
    """Minimise ``-log partial likelihood + alpha / 2 |coef|^2`` by Newton's method.

    Events at one time share a risk set (Breslow). ``intercept_`` is 0: a hazard that all have in
    common is not estimated.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def fit(self, x: np.ndarray, y: np.ndarray) -> "RidgeCox":
        """``x`` ``[n, F]``, ``y`` ``[n]`` signed times (``scoring.survival``)."""
        time, happened = times_and_events(y)
        order = np.argsort(-time, kind="stable")  # a risk set is a beginning of this order
        x, time, happened = np.asarray(x, dtype=np.float64)[order], time[order], happened[order]
        starts = np.flatnonzero(np.r_[True, time[1:] != time[:-1]])
        last = np.r_[starts[1:], len(time)] - 1
        risk_set = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(time)]))
        events = np.add.reduceat(happened.astype(float), starts)

        def loss(coef: np.ndarray) -> float:
            eta = x @ coef
            total = np.logaddexp.accumulate(eta)[last]
            return events @ total - eta[happened].sum() + self.alpha / 2 * coef @ coef

        coef = np.zeros(x.shape[1])
        value = loss(coef)
        for _ in range(_MAX_ITERATIONS):
            eta = x @ coef
            hazard = np.exp(eta - eta.max())
            total = np.cumsum(hazard)[last]
            expected = hazard * np.cumsum((events / total)[::-1])[::-1][risk_set]
            gradient = x.T @ (happened - expected) - self.alpha * coef
            means = np.cumsum(hazard[:, None] * x, axis=0)[last] / total[:, None]
            spread = (x.T * expected) @ x - (means.T * events) @ means
            spread[np.diag_indices_from(spread)] += self.alpha
            step = solve(spread, gradient, assume_a="pos")
            gain = gradient @ step
            for _ in range(_MAX_HALVINGS):
                if (new := loss(coef + step)) <= value:
                    break
                step = step / 2
            coef, value = coef + step, new
            if gain < _TOLERANCE:
                break
        else:
            warnings.warn("Cox regression did not converge", ConvergenceWarning, stacklevel=2)
        self.coef_, self.intercept_ = coef, 0.0
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Log relative risk ``[n]``."""
        return x @ self.coef_
