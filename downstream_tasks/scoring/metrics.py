"""Scores of one test set (scikit-learn, scipy), their summary over runs, and a paired test.

Everything that is undefined (one class in a test set, a constant prediction, a single run) is NaN;
a table never shows a number that was not computed. Test people who differ in nothing are a fault of
the split, and warned about; a constant prediction may be what a baseline is.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats
from sklearn import metrics as skm

from downstream_tasks.scoring.calibration import CALIBRATION_METRICS, calibration_metrics
from downstream_tasks.scoring.survival import SURVIVAL_METRICS, weighted_concordance

logger = logging.getLogger(__name__)

CLASSIFICATION_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "f1_macro",
    "f1",  # of the second class, two classes only: the F1 column of the paper
    "auroc",
    "average_precision",
    *CALIBRATION_METRICS,
)
REGRESSION_METRICS = ("mse", "mae", "r2", "pearson", "spearman", "mse_raw", "mae_raw")
LOWER_IS_BETTER = frozenset({"mse", "mae", "mse_raw", "mae_raw", *CALIBRATION_METRICS})


def metric_names(task_type: str, n_classes: int = 2) -> tuple[str, ...]:
    """Metrics reported for a task: ``f1`` exists for two classes only."""
    if task_type == "regression":
        return REGRESSION_METRICS
    if task_type == "survival":
        return SURVIVAL_METRICS
    return tuple(m for m in CLASSIFICATION_METRICS if m != "f1" or n_classes == 2)


def main_metric_names(task_type: str, n_classes: int = 2) -> tuple[str, ...]:
    """Those that may select a setting: without ``ece``, which class frequencies bring to 0."""
    return tuple(m for m in metric_names(task_type, n_classes) if m != "ece")


def direction(metric: str) -> int:
    """1 for a metric of which more is better, -1 for one of which less is."""
    return -1 if metric in LOWER_IS_BETTER else 1


def selection_key(metric: str, score: float, loss: float) -> tuple[float, float]:
    """Return what is largest for the best on validation: by its score, and by its loss in a tie.

    Small validation sets tie often. What diverged (a loss that is not finite) is never the best.
    """
    if not np.isfinite(loss):
        return (-np.inf, -np.inf)
    return (direction(metric) * score, -loss)


def classification_metrics(y: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Metrics of class probabilities ``[n, C]`` against class numbers ``y`` ``[n]``.

    With more than two classes AUROC and average precision are the mean of one class against the
    rest. Both are NaN if a class does not occur in ``y``.
    """
    n_classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    present = np.unique(y)
    # Mean recall of the classes that occur: what balanced_accuracy_score gives, without its
    # warning about predicted classes that do not.
    recall = skm.recall_score(y, predicted, labels=present, average="macro", zero_division=0.0)
    result = {
        "accuracy": float(skm.accuracy_score(y, predicted)),
        "balanced_accuracy": float(recall),
        "f1_macro": float(
            skm.f1_score(y, predicted, labels=range(n_classes), average="macro", zero_division=0.0)
        ),
    }
    if n_classes == 2:
        result["f1"] = float(skm.f1_score(y, predicted, pos_label=1, zero_division=0.0))
    if len(present) < n_classes:
        logger.warning(
            "AUROC and average precision are undefined: only %d of %d classes occur in these "
            "%d people",
            len(present),
            n_classes,
            len(y),
        )
        ranked = {"auroc": np.nan, "average_precision": np.nan}
        return result | ranked | calibration_metrics(y, probabilities)
    against_rest = range(1, 2) if n_classes == 2 else range(n_classes)
    ranked = {
        "auroc": float(
            np.mean([skm.roc_auc_score(y == c, probabilities[:, c]) for c in against_rest])
        ),
        "average_precision": float(
            np.mean(
                [skm.average_precision_score(y == c, probabilities[:, c]) for c in against_rest]
            )
        ),
    }
    return result | ranked | calibration_metrics(y, probabilities)


def confusion_matrix(y: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Counts ``[C, C]``: rows are the true class, columns the predicted one."""
    n_classes = probabilities.shape[1]
    return skm.confusion_matrix(y, probabilities.argmax(axis=1), labels=range(n_classes))


def regression_metrics(y: np.ndarray, predicted: np.ndarray, scale: float) -> dict[str, float]:
    """Metrics of ``predicted`` against ``y`` (both ``[n]``, z-scored on training statistics).

    ``scale`` is the standard deviation of the target over the training people; ``mse_raw`` and
    ``mae_raw`` are in the target's own unit. Correlations of a constant are NaN (method 8.9: R2 is
    reported as R2 and Pearson r as r).
    """
    mse, mae = skm.mean_squared_error(y, predicted), skm.mean_absolute_error(y, predicted)
    result = {"mse": mse, "mae": mae, "mse_raw": mse * scale**2, "mae_raw": mae * scale}
    varies = len(y) > 1 and np.ptp(y) > 0
    result["r2"] = skm.r2_score(y, predicted) if varies else np.nan
    if not varies:
        logger.warning("R2 and correlations are undefined: all %d targets are the same", len(y))
    if varies and np.ptp(predicted) > 0:
        result["pearson"] = stats.pearsonr(y, predicted).statistic
        result["spearman"] = stats.spearmanr(y, predicted).statistic
    else:
        result |= {"pearson": np.nan, "spearman": np.nan}
    return {name: float(result[name]) for name in REGRESSION_METRICS}


def survival_metrics(y: np.ndarray, risk: np.ndarray) -> dict[str, float]:
    """Harrell's C of ``risk`` ``[n]`` against signed times ``y`` ``[n]`` (``scoring.survival``)."""
    if not (y > 0).any():
        logger.warning("concordance is undefined: none of these %d people had the event", len(y))
        return {"c_index": np.nan}
    return {"c_index": float(weighted_concordance(y, risk, np.ones((1, len(y))))[0])}


def mean_sd(runs: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard deviation (n - 1) of each metric over runs; the SD of one run is NaN."""
    table = {name: np.array([run[name] for run in runs]) for name in runs[0]}
    mean = {name: float(values.mean()) for name, values in table.items()}
    sd = {
        name: float(values.std(ddof=1)) if len(values) > 1 else np.nan
        for name, values in table.items()
    }
    return mean, sd


def corrected_resampled_ttest(
    differences: np.ndarray, n_train: float, n_test: float
) -> tuple[float, float]:
    """Paired t-test over resampled splits whose training sets overlap (Nadeau and Bengio, 2003).

    ``differences`` ``[k]`` are score differences of two methods on the same k random splits. The
    variance is inflated by ``1/k + n_test/n_train`` because the splits share people. Returns
    (t, two-sided p) with k - 1 degrees of freedom; NaN for fewer than two splits or differences
    that do not vary. It is meant for *new* splits per run, not for new seeds on one split.
    """
    differences = np.asarray(differences, dtype=float)
    error = resampled_standard_error(differences, n_train, n_test)
    if not error > np.sqrt(np.finfo(float).eps * np.abs(differences).max()):
        return np.nan, np.nan
    t = differences.mean() / error
    return float(t), float(2 * stats.t.sf(abs(t), df=len(differences) - 1))


def resampled_standard_error(values: np.ndarray, n_train: float, n_test: float) -> float:
    """Standard error of the mean of ``values`` ``[k]`` over splits that share people."""
    k = len(values)
    if k < 2:
        return np.nan
    return float(np.sqrt((1 / k + n_test / n_train) * np.var(values, ddof=1)))
