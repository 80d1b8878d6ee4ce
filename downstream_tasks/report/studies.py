"""What studies found, in the words of ``results.md``."""

from downstream_tasks.report.cells import (
    METRIC_TITLES,
    interval_text,
    markdown_table,
    mean_sd_text,
)
from downstream_tasks.report.results import Results


def permutation_text(results: Results) -> str:
    """The table of the permutation tests, and how to read it."""
    tests = results.permutations
    if not tests:
        return ""
    metric, n = METRIC_TITLES[tests[0].metric], tests[0].n_permutations
    header = ["Permutation test", metric, "Permuted labels: mean", "95 % of them", "p"]
    lines = [
        [
            test.method,
            mean_sd_text(test.observed, None),
            mean_sd_text(test.null_mean, None),
            interval_text(test.null_interval),
            f"{test.p:.3g}",
        ]
        for test in tests
    ]
    text = (
        f"Labels permuted {n} times, everything fitted again each time, inner selection included. "
        f"p = (1 + permutations at least as good) / {n + 1}. It says whether there is anything to "
        "predict with, not whether one row is better than another."
    )
    if tests[0].n_arrangements < n:
        text += f" Only {tests[0].n_arrangements} of the arrangements were different."
    if tests[0].n_redrawn:
        text += f" {tests[0].n_redrawn} arrangements were drawn again: nothing could be fitted."
    return f"{markdown_table(header, lines)}\n\n{text}"


def curve_text(results: Results) -> str:
    """The learning curve as a table."""
    points = results.learning_curve
    if not points:
        return ""
    metric = METRIC_TITLES[results.main_metric]
    header = ["Learning curve", "Head", "Training people", "Draws", metric, "95 % of the draws"]
    lines = [
        [
            point.name,
            point.head,
            f"{point.n_people:.0f}",
            str(point.n_draws),
            mean_sd_text(point.mean, point.sd),
            interval_text(point.interval),
        ]
        for point in points
    ]
    text = (
        "Mean (SD) over draws of training people and runs; the test people of a run stay the same. "
        "The draws say how much it matters who is labelled, not what other test people would give."
    )
    return f"{markdown_table(header, lines)}\n\n{text}"
