"""Cells of tables: names of metrics, numbers as text, columns of one width."""

from collections.abc import Sequence

_SAME = 1e-9  # an SD below it is rounding: a head without a random start, on one split

METRIC_TITLES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "f1_macro": "Macro F1",
    "f1": "F1",
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "brier": "Brier score",
    "ece": "Calibration error (ECE)",
    "mse": "MSE (z)",
    "mae": "MAE (z)",
    "r2": "R2",
    "pearson": "Pearson r",
    "spearman": "Spearman r",
    "mse_raw": "MSE",
    "mae_raw": "MAE",
    "c_index": "Harrell's C",
    "identification": "Identified",
    "forward": "Forward",
    "backward": "Backward",
    "same_person_auc": "AUC, same person",
}


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A markdown table with columns wide enough to be read as text too."""
    widths = [max(len(row[i]) for row in [header, *lines]) for i in range(len(header))]

    def join(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([join(header), rule, *(join(line) for line in lines)])


def mean_sd_text(mean: float | None, sd: float | None) -> str:
    """``0.812 (0.020)``, the SD only where runs differ; ``n/a`` where undefined."""
    if undefined(mean):
        return "n/a"
    return number_text(mean) + ("" if undefined(sd) or sd < _SAME else f" ({sd:.3f})")


def interval_text(bounds: Sequence[float | None]) -> str:
    """``0.75 to 0.86``."""
    if any(map(undefined, bounds)):
        return "n/a"
    return f"{number_text(bounds[0])} to {number_text(bounds[1])}"


def number_text(value: float) -> str:
    """``0.812``, and no ``-0.000``."""
    return f"{round(value, 3) + 0.0:.3f}"


def undefined(value: float | None) -> bool:
    """Whether it is a number that was not computed: None or NaN."""
    return value is None or value != value


def p_text(p: float) -> str:
    """``0.023``, ``below .001``, ``n/a``."""
    return "n/a" if undefined(p) else f"{p:.3f}" if p >= 0.001 else "below .001"
