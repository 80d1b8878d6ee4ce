"""scikit-learn heads on feature tables: logistic regression, ridge regression, nearest neighbours.

A head is fitted on the training examples only: standardisation, rotation, hyper-parameters (by
inner cross-validation over groups of people, or on the validation people) and weights. The test
examples are scored with the result and nothing is chosen on them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.special import expit, softmax
from scipy.stats import pearsonr, spearmanr
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from downstream_tasks.cohort import Cohort
from downstream_tasks.splits import Split, inner_folds
from downstream_tasks.tasks import HeadsConfig
from src.utils.errors import UserError

logger = logging.getLogger(__name__)

_MAX_ITERATIONS = 5000
_CHUNK = 1024  # examples

SCORERS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "f1_macro": "f1_macro",
    "f1": "f1",
    "auroc": "roc_auc_ovr",
    "average_precision": "average_precision",
    "mse": "neg_mean_squared_error",
    "mae": "neg_mean_absolute_error",
    "mse_raw": "neg_mean_squared_error",
    "mae_raw": "neg_mean_absolute_error",
    "r2": "r2",
    "pearson": make_scorer(lambda y, guess: pearsonr(y, guess).statistic),
    "spearman": make_scorer(lambda y, guess: spearmanr(y, guess).statistic),
}


@dataclass(frozen=True)
class Target:
    """What heads are trained on.

    Attributes:
        y: ``[n_examples]`` class numbers, or targets z-scored on training statistics.
        mean, scale: of the training people, in the target's unit (0 and 1 for classes).
        n_classes: 0 for regression.
    """

    y: np.ndarray
    mean: float = 0.0
    scale: float = 1.0
    n_classes: int = 0

    def normalise(self, y: np.ndarray) -> np.ndarray:
        """Targets in their own unit as heads see them; class numbers as they are."""
        return y if self.n_classes else (y - self.mean) / self.scale


@dataclass(frozen=True)
class Problem:
    """One run of an evaluation: who is in which part, what to predict, what picks a setting."""

    cohort: Cohort
    split: Split
    target: Target
    metric: str
    seed: int


@dataclass(frozen=True)
class LinearMap:
    """A fitted linear head on the features as given: standardisation is folded in.

    ``weight`` ``[C, F]`` and ``bias`` ``[C]``; C is 1 for regression and for the log odds of the
    second of two classes.
    """

    weight: np.ndarray
    bias: np.ndarray

    def scores(self, features: np.ndarray, n_classes: int) -> np.ndarray:
        """Probabilities ``[n, C]``, or predictions ``[n]`` (z-scored) if ``n_classes`` is 0."""
        raw = np.empty((len(features), len(self.weight)))
        for start in range(0, len(features), _CHUNK):  # a copy in float64 of a part at a time
            part = slice(start, start + _CHUNK)
            raw[part] = features[part].astype(np.float64) @ self.weight.T + self.bias
        if n_classes == 0:
            return raw[:, 0]
        if raw.shape[1] == 1:
            positive = expit(raw)
            return np.hstack([1 - positive, positive])
        return softmax(raw, axis=1)


@dataclass(frozen=True)
class HeadResult:
    """One fitted head.

    Attributes:
        scores: of *every* example, ``[n, C]`` probabilities or ``[n]`` z-scored predictions.
        chosen: hyper-parameters (and epoch) picked without the test people.
        history: one row per epoch of the chosen setting, for heads that are trained.
        linear: the head itself, if it is a linear map of the features.
        weights: its parameters by name, if it is something else that was trained.
    """

    scores: np.ndarray
    chosen: dict[str, float]
    history: list[dict[str, float]] = field(default_factory=list)
    linear: LinearMap | None = None
    weights: dict[str, np.ndarray] | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table: a representation, a head, and what it gave in every run.

    ``results`` has one entry per problem (seed). Scores of examples outside the test part are not
    looked at and may be NaN.
    """

    name: str
    head: str
    kind: Literal["model", "baseline", "control"]
    results: Sequence[HeadResult]


def make_target(cohort: Cohort, split: Split, normalise: bool = True) -> Target:
    """Class numbers, or the target z-scored on the training units (method 7)."""
    if cohort.is_classification:
        counts = np.bincount(cohort.y[split.train], minlength=len(cohort.classes))
        if not counts.all():
            raise UserError(
                f"no training person is in class '{cohort.classes[int(counts.argmin())]}'; "
                "draw another split (split.source: random, or another split.seed)."
            )
        return Target(cohort.y, n_classes=len(cohort.classes))
    if not normalise:
        return Target(cohort.y)
    _, _, y = cohort.unit_mean(np.zeros(len(split.train)), split.train)
    mean, scale = float(y.mean()), float(y.std())
    if scale == 0:
        raise UserError(f"all training people have the same target, {mean:g}; draw another split.")
    return Target((cohort.y - mean) / scale, mean, scale)


def class_weights(y_train: np.ndarray, n_classes: int) -> np.ndarray:
    """Weight of each class, ``[C]``: inverse to its frequency, mean 1 over the examples."""
    counts = np.bincount(y_train, minlength=n_classes)
    return len(y_train) / (n_classes * np.maximum(counts, 1))


def fit_head(kind: str, features: np.ndarray, problem: Problem, config: HeadsConfig) -> HeadResult:
    """Fit ``logistic``, ``ridge`` or ``knn`` on ``features`` ``[n_examples, F]``.

    Weights are fitted on the training people, whatever the head. With ``selection: cv`` so is the
    setting, and the validation people are not used at all; ``selection: valid``, the probes and
    fine-tuning pick theirs on the validation people, so that such rows have seen more of them.
    """
    split, target = problem.split, problem.target
    everyone = np.arange(len(features))
    estimator, name, values = _estimator(kind, target, config)
    scaler = StandardScaler().fit(features[split.train])
    fit = scaler.transform(features[split.train])
    rotation = None if kind == "knn" else _rotation(fit, config.max_components, problem.seed)

    def prepare(examples: np.ndarray) -> np.ndarray:
        scaled = scaler.transform(features[examples])
        return scaled if rotation is None else rotation.transform(scaled).astype(np.float64)

    fit, y_fit = prepare(split.train), target.y[split.train]
    if config.selection == "valid":
        x, y = (
            np.concatenate([fit, prepare(split.valid)]),
            target.y[np.r_[split.train, split.valid]],
        )
        folds = [(np.arange(len(fit)), np.arange(len(fit), len(x)))]
    else:
        x, y = fit, y_fit
        folds = inner_folds(problem.cohort, split.train, config.folds, problem.seed)
    if kind == "knn":
        fewest = min(len(train) for train, _ in folds)
        values = [k for k in values if k <= fewest] or [1]
    search = GridSearchCV(
        estimator, {name: values}, scoring=SCORERS[problem.metric], cv=folds, refit=False
    ).fit(x, y)
    chosen = {name: search.best_params_[name], "selection_score": float(search.best_score_)}
    if len(values) > 1 and kind != "knn" and chosen[name] in (values[0], values[-1]):
        logger.info(
            "%s %g is at the edge of its grid: heads.%s may be too narrow", name, chosen[name], name
        )
    estimator.set_params(**search.best_params_).fit(fit, y_fit)
    if kind == "knn":
        predict = estimator.predict_proba if target.n_classes else estimator.predict
        return HeadResult(predict(prepare(everyone)), chosen)
    linear = _fold_preparation(estimator, scaler, rotation)
    return HeadResult(linear.scores(features, target.n_classes), chosen, linear=linear)


def _estimator(
    kind: str, target: Target, config: HeadsConfig
) -> tuple[BaseEstimator, str, list[float]]:
    """The estimator, its hyper-parameter and the grid, strongest regularisation first.

    The order matters: of equally good values the first is taken.
    """
    if kind == "logistic":
        weight = "balanced" if config.class_weights else None
        estimator = LogisticRegression(max_iter=_MAX_ITERATIONS, class_weight=weight)
        return estimator, "C", sorted(config.C)
    if kind == "ridge":
        return Ridge(), "alpha", sorted(config.alpha, reverse=True)
    neighbours = KNeighborsClassifier if target.n_classes else KNeighborsRegressor
    return neighbours(metric="cosine"), "n_neighbors", sorted(config.n_neighbors, reverse=True)


def _rotation(fit: np.ndarray, max_components: int, seed: int) -> PCA | None:
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
    weight = weight / scaler.scale_
    return LinearMap(weight, bias - weight @ scaler.mean_)
