"""scikit-learn heads on feature tables: logistic regression, ridge regression, nearest neighbours.

A head is fitted on the training examples only: standardisation, rotation, hyper-parameters (by
inner cross-validation over groups of people, or on the validation people) and weights. The test
examples are scored with the result and nothing is chosen on them.
"""

import logging

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from downstream_tasks.cohort.problem import Problem
from downstream_tasks.cohort.splits import inner_folds
from downstream_tasks.config import HeadsConfig
from downstream_tasks.heads.result import HeadResult, LinearMap, edge_notes

logger = logging.getLogger(__name__)

_MAX_ITERATIONS = 5000

SCORERS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "f1_macro": "f1_macro",
    "f1": "f1",
    "auroc": "roc_auc_ovr",
    "average_precision": "average_precision",
    "brier": "neg_brier_score",
    "mse": "neg_mean_squared_error",
    "mae": "neg_mean_absolute_error",
    "mse_raw": "neg_mean_squared_error",
    "mae_raw": "neg_mean_absolute_error",
    "r2": "r2",
    "pearson": make_scorer(lambda y, guess: pearsonr(y, guess).statistic),
    "spearman": make_scorer(lambda y, guess: spearmanr(y, guess).statistic),
}


def fit_head(kind: str, features: np.ndarray, problem: Problem, config: HeadsConfig) -> HeadResult:
    """Fit ``logistic``, ``ridge`` or ``knn`` on ``features`` ``[n_examples, F]``.

    Weights are fitted on the training people, whatever the head. With ``selection: cv`` so is the
    setting, and the validation people are not used at all; ``selection: valid``, the probes and
    fine-tuning pick theirs on the validation people, so that such rows have seen more of them.
    """
    split, target = problem.split, problem.target
    everyone = np.arange(len(features))
    estimator, name, values = _estimator(kind, problem, config)
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
    notes = () if kind == "knn" else edge_notes(chosen, {name: values})
    estimator.set_params(**search.best_params_).fit(fit, y_fit)
    if kind == "knn":
        predict = estimator.predict_proba if target.n_classes else estimator.predict
        return HeadResult(predict(prepare(everyone)), chosen)
    linear = _fold_preparation(estimator, scaler, rotation)
    return HeadResult(linear.scores(features, target.n_classes), chosen, linear=linear, notes=notes)


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
