"""scikit-learn heads on feature tables: logistic regression, ridge regression, nearest neighbours.

A head is fitted on the training examples only: standardisation, rotation, hyper-parameters (by
inner cross-validation over groups of people, or on the validation people) and weights. The test
examples are scored with the result and nothing is chosen on them.
"""

import logging
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from downstream_tasks.cohort.problem import Problem, validation_score
from downstream_tasks.cohort.splits import inner_folds
from downstream_tasks.config import HeadsConfig
from downstream_tasks.heads.cox import RidgeCox
from downstream_tasks.heads.result import HeadResult, LinearMap, edge_notes
from downstream_tasks.scoring.metrics import direction

logger = logging.getLogger(__name__)

_MAX_ITERATIONS = 5000


def fit_head(
    kind: str,
    features: np.ndarray,
    problem: Problem,
    config: HeadsConfig,
    *,
    standardise: bool = True,
) -> HeadResult:
    """Fit ``logistic``, ``ridge``, ``cox`` or ``knn`` on ``features`` ``[n_examples, F]``.

    Weights are fitted on the training people, whatever the head. With ``selection: cv`` so is the
    setting, and the validation people are not used at all; ``selection: valid``, the probes and
    fine-tuning pick theirs on the validation people, so that such rows have seen more of them.
    With ``selection: fixed`` the grid has one value, and a penalty is one per feature.

    ``standardise`` off leaves features in the scale they have, for those that have been given one.
    """
    split, target = problem.split, problem.target
    everyone = np.arange(len(features))
    estimator, name, values = _estimator(kind, problem, config)
    scaler = StandardScaler(with_std=standardise).fit(features[split.train])
    fit = scaler.transform(features[split.train])
    rotation = None if kind == "knn" else span_rotation(fit, config.max_components, problem.seed)

    def prepare(examples: np.ndarray) -> np.ndarray:
        scaled = scaler.transform(features[examples])
        return scaled if rotation is None else rotation.transform(scaled).astype(np.float64)

    fit, y_fit = prepare(split.train), target.y[split.train]
    if config.selection == "fixed":
        chosen, notes = {}, ()
        estimator.set_params(**{name: _of_all_features(name, values[0], features.shape[1])})
    else:
        chosen, notes = _select(estimator, name, values, fit, prepare, problem, config)
        estimator.set_params(**{name: chosen[name]})
    notes += _convergence_note(_fit(estimator, fit, y_fit))
    if kind == "knn":
        return HeadResult(_predict(estimator, prepare(everyone), target.n_classes), chosen)
    linear = _fold_preparation(estimator, scaler, rotation)
    return HeadResult(linear.scores(features, target.n_classes), chosen, linear=linear, notes=notes)


def _of_all_features(name: str, value: float, n_features: int) -> float:
    """A penalty per feature as scikit-learn has it: features then have a total variance of 1."""
    if name == "n_neighbors":
        return value
    return value / n_features if name == "C" else value * n_features


def _select(
    estimator: BaseEstimator,
    name: str,
    values: Sequence[float],
    fit: np.ndarray,
    prepare: Callable[[np.ndarray], np.ndarray],
    problem: Problem,
    config: HeadsConfig,
) -> tuple[dict[str, float], tuple[str, ...]]:
    """The setting that scores best without the test people, and what qualifies the choice.

    ``fit`` are the prepared features of the training people.
    """
    split, y = problem.split, problem.target.y
    x, examples = fit, split.train
    if config.selection == "valid":
        x, examples = np.concatenate([fit, prepare(split.valid)]), np.r_[split.train, split.valid]
        folds = [(np.arange(len(fit)), np.arange(len(fit), len(x)))]
    else:
        folds = inner_folds(problem.cohort, split.train, config.folds, problem.seed)
    if name == "n_neighbors":
        fewest = min(len(train) for train, _ in folds)
        values = [k for k in values if k <= fewest] or [1]
    scores, unfinished = _score_settings(
        estimator, name, values, x, y[examples], examples, folds, problem
    )
    sign = direction(problem.metric)
    best = int(np.argmax(sign * scores))  # of equally good values the first
    chosen = {name: values[best], "selection_score": float(scores[best])}
    notes = () if name == "n_neighbors" else edge_notes(chosen, {name: values})
    if unfinished:
        n_fits = len(values) * len(folds)
        text = (
            f"the solver did not converge in {unfinished} of {n_fits} fits that chose the setting"
        )
        logger.warning("%s", text)
        notes += (text,)
    return chosen, notes


def _score_settings(
    estimator: BaseEstimator,
    name: str,
    values: Sequence[float],
    x: np.ndarray,
    y: np.ndarray,
    examples: np.ndarray,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    problem: Problem,
) -> tuple[np.ndarray, int]:
    """The problem's metric of each value, ``[values]``, and how many fits did not converge.

    ``x`` and ``y`` are those of ``examples``, in which the folds are positions. Scored is what is
    scored outside: the units, over whose runs or clips predictions are averaged.
    """
    scores, unfinished = np.zeros((len(values), len(folds))), 0
    for i, value in enumerate(values):
        for k, (fit, held_out) in enumerate(folds):
            one = clone(estimator).set_params(**{name: value})
            unfinished += not _fit(one, x[fit], y[fit])
            predicted = _predict(one, x[held_out], problem.target.n_classes)
            scores[i, k] = validation_score(predicted, examples[held_out], problem)
    # A fold whose people the metric is not defined for (no event, one class) says nothing.
    defined = np.isfinite(scores).any(axis=0)
    return scores[:, defined if defined.any() else slice(None)].mean(axis=1), unfinished


def _fit(estimator: BaseEstimator, x: np.ndarray, y: np.ndarray) -> bool:
    """Fit ``estimator``; return whether its solver converged."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator.fit(x, y)
    others = [w for w in caught if not issubclass(w.category, ConvergenceWarning)]
    for warning in others:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return len(others) == len(caught)


def _predict(estimator: BaseEstimator, x: np.ndarray, n_classes: int) -> np.ndarray:
    """Probabilities of all classes ``[n, C]``, or predictions ``[n]``."""
    if not n_classes:
        return estimator.predict(x)
    probabilities = np.zeros((len(x), n_classes))  # of a class that was not there to be fitted: 0
    probabilities[:, estimator.classes_] = estimator.predict_proba(x)
    return probabilities


def _convergence_note(converged: bool) -> tuple[str, ...]:
    if converged:
        return ()
    text = f"the solver did not converge in {_MAX_ITERATIONS} iterations"
    logger.warning("%s", text)
    return (text,)


def _estimator(
    kind: str, problem: Problem, config: HeadsConfig
) -> tuple[BaseEstimator, str, list[float]]:
    """The estimator, its hyper-parameter and the grid, strongest regularisation first.

    The order matters: of equally good values the first is taken.
    """
    if kind == "logistic":
        weight = "balanced" if problem.balanced else None
        estimator = LogisticRegression(max_iter=_MAX_ITERATIONS, class_weight=weight)
        return estimator, "C", sorted(config.C)
    if kind == "ridge":
        return Ridge(), "alpha", sorted(config.alpha, reverse=True)
    if kind == "cox":
        return RidgeCox(), "alpha", sorted(config.cox_alpha, reverse=True)
    neighbours: BaseEstimator = KNeighborsRegressor(metric="cosine")
    if problem.target.n_classes:
        neighbours = WeightedNeighbours(metric="cosine", balanced=problem.balanced)
    return neighbours, "n_neighbors", sorted(config.n_neighbors, reverse=True)


class WeightedNeighbours(KNeighborsClassifier):
    """Nearest neighbours whose votes weigh their classes alike if ``balanced``.

    A vote counts as much as the voter's class is rare among those it was fitted on.
    """

    def __init__(
        self, n_neighbors: int = 5, *, metric: str = "cosine", balanced: bool = False
    ) -> None:
        super().__init__(n_neighbors, metric=metric)
        self.balanced = balanced

    def fit(self, x: np.ndarray, y: np.ndarray) -> "WeightedNeighbours":
        """As scikit-learn does, and count the classes."""
        self.class_counts_ = np.unique(y, return_counts=True)[1]
        return super().fit(x, y)

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """Share of the (weighted) votes, ``[n, C]``."""
        votes = super().predict_proba(x)
        if self.balanced:
            votes = votes / self.class_counts_
        return votes / votes.sum(axis=1, keepdims=True)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The class with the most votes."""
        return self.classes_[self.predict_proba(x).argmax(axis=1)]


def span_rotation(fit: np.ndarray, max_components: int, seed: int) -> PCA | None:
    """Principal axes of the standardised training features, if there are more features than those.

    A penalised linear head lies in the span of its training examples, so turning the features into
    that span changes nothing but the time (a connectome has 100,000 of them, a cohort 400 people).
    Only a cohort of more than ``max_components`` loses the directions of least variance.
    """
    span = min(fit.shape)
    n_components = min(span, max_components)
    if n_components == fit.shape[1]:
        return None
    if n_components == span:
        return PCA(svd_solver="full").fit(fit)
    logger.info("features reduced from %d to %d principal components", fit.shape[1], n_components)
    return PCA(n_components, svd_solver="randomized", random_state=seed).fit(fit)


def _fold_preparation(
    estimator: BaseEstimator, scaler: StandardScaler, rotation: PCA | None
) -> LinearMap:
    """The head as one linear map of the features as given."""
    weight, bias = np.atleast_2d(estimator.coef_), np.atleast_1d(estimator.intercept_)
    if rotation is not None:
        weight = weight @ rotation.components_
        bias = bias - weight @ rotation.mean_
    if scaler.with_std:
        weight = weight / scaler.scale_
    return LinearMap(weight, bias - weight @ scaler.mean_)
