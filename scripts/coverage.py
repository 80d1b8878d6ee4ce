"""Do the 95 % intervals cover? Simulated, by the functions that the evaluation itself calls.

    python scripts/coverage.py                 # some minutes
    python scripts/coverage.py --quick         # 200 test sets a setting
    python scripts/coverage.py --n_tests 5000 --out coverage.md

A predictor is fixed (nothing is trained), its true performance is read off a very large sample, and
many small test sets are drawn. A row of the table says how often the interval held the truth (with
the Monte Carlo error), how wide it is, and what the plain percentile bootstrap gives on the same
test sets. Rows "a - b" are paired differences of two predictors on the same people; of those that
are equally good, the share of p-values below .05 is the rate of false positives.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import expit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from downstream_tasks.report.cells import METRIC_TITLES, markdown_table
from downstream_tasks.scoring.design import Design
from downstream_tasks.scoring.fingerprint import identify, score_hits
from downstream_tasks.scoring.intervals import Bounds, metrics_of, summarise
from downstream_tasks.scoring.paired import compare, verdict
from downstream_tasks.scoring.weighted import ScoredRun, weighted_metrics
from src.utils.errors import run_main
from src.utils.files import write_text
from src.utils.progress import progress_bar

CLASSES = ("balanced_accuracy", "accuracy", "f1_macro", "f1", "auroc", "average_precision", "brier")
NUMBERS = ("mse", "mae", "r2", "pearson", "spearman")
TESTED = ("balanced_accuracy", "auroc", "mse", "r2", "pearson")  # their differences get a p-value
N_RESAMPLES = 500  # of the percentile bootstrap
N_EXCHANGES = 999

Predictors = tuple[ScoredRun, ScoredRun]
Draw = Callable[[np.random.Generator, int | None], Predictors]


class Setting(NamedTuple):
    """A test set's kind: ``draw(rng, n)`` gives n people, or a test set where n is ``None``."""

    name: str
    draw: Draw
    n_people: int
    metrics: Sequence[str]


class Coverage(NamedTuple):
    """What was found for one metric of one setting, or for a difference in it."""

    setting: str
    metric: str
    paired: bool
    truth: float
    covered: float
    width: float
    percentile_covered: float
    percentile_width: float
    significant: float = np.nan
    borderline: float = np.nan


# --- predictors whose population is known ---------------------------------------------------------


def events_of_people(strengths: tuple[float, float], n_events: int = 24) -> Draw:
    """Half the events of a person are of either class; people differ in gain and in bias."""

    def draw(rng: np.random.Generator, n: int | None) -> Predictors:
        n = n or 10
        person = np.repeat(np.arange(n), n_events)
        y = np.tile(np.arange(n_events) % 2, n)
        shared_gain, shared = rng.normal(size=n), rng.normal(size=len(y))
        runs = []
        for strength in strengths:
            gain = strength * np.exp(0.25 * shared_gain + 0.35 * rng.normal(size=n))
            bias = 0.5 * rng.normal(size=n)
            noise = 0.7 * shared + 0.7 * rng.normal(size=len(y))
            runs.append(_two_classes(y, gain[person] * (y - 0.5) + bias[person] + noise, person))
        return runs[0], runs[1]

    return draw


def people_of_two_classes(strengths: tuple[float, float], n: int, n_positive: int) -> Draw:
    """One score a person; so many of a test set are positive."""

    def draw(rng: np.random.Generator, many: int | None) -> Predictors:
        positive = round(many * n_positive / n) if many else n_positive
        y = (np.arange(many or n) < positive).astype(int)
        shared = rng.normal(size=len(y))
        runs = [
            _two_classes(
                y,
                strength * (y - 0.5) + 0.7 * shared + 0.7 * rng.normal(size=len(y)),
                np.arange(len(y)),
            )
            for strength in strengths
        ]
        return runs[0], runs[1]

    return draw


def people_with_a_number(
    correlations: tuple[float, float], n: int, *, heavy_tails: bool = False
) -> Draw:
    """A target and predictions that correlate with it so much, shrunk as ridge regression does."""

    def draw(rng: np.random.Generator, many: int | None) -> Predictors:
        n_people = many or n
        y = (
            rng.standard_t(5, n_people) / np.sqrt(5 / 3)
            if heavy_tails
            else rng.normal(size=n_people)
        )
        shared = rng.normal(size=n_people)
        runs = []
        for r in correlations:
            noise = (shared + rng.normal(size=n_people)) / np.sqrt(2)
            predicted = r * (r * y + np.sqrt(1 - r**2) * noise)
            runs.append(ScoredRun(y, predicted, np.arange(n_people)))
        return runs[0], runs[1]

    return draw


def families(strengths: tuple[float, float], n: int) -> Draw:
    """People of families of two or three who are alike in class and in score."""

    def draw(rng: np.random.Generator, many: int | None) -> Predictors:
        n_people = many or n
        family = np.arange(n_people) // 2
        of_family = rng.normal(size=(2, family[-1] + 1))[:, family]
        y = (of_family[0] + rng.normal(size=n_people) > 0.6).astype(int)
        shared = 0.8 * of_family[1] + 0.6 * rng.normal(size=n_people)
        runs = [
            _two_classes(
                y, strength * (y - 0.5) + 0.7 * shared + 0.7 * rng.normal(size=n_people), family
            )
            for strength in strengths
        ]
        return runs[0], runs[1]

    return draw


def fingerprints(signals: tuple[float, float], n: int, n_features: int = 60) -> Draw:
    """People who are identified among n by features of two runs; many: as many groups as fit."""

    def draw(rng: np.random.Generator, many: int | None) -> Predictors:
        n_groups = max(1, (many or n) // n)
        parts: list[list[ScoredRun]] = [[], []]
        for group in range(n_groups):
            person, *noise = rng.normal(size=(5, n, n_features))
            for i, signal in enumerate(signals):
                first, second = (signal * person + one for one in noise[2 * i : 2 * i + 2])
                hits = score_hits(*identify(first, second), group * n + np.arange(n))
                parts[i].append(hits["identification"])
        joined = [
            ScoredRun(
                *(np.concatenate([getattr(run, name) for run in runs])
                  for name in ("y", "scores", "clusters"))
            )
            for runs in parts
        ]  # fmt: skip
        return joined[0], joined[1]

    return draw


def _two_classes(y: np.ndarray, log_odds: np.ndarray, clusters: np.ndarray) -> ScoredRun:
    p = expit(log_odds)
    return ScoredRun(y, np.stack([1 - p, p], axis=1), clusters)


SETTINGS = (
    *(
        Setting(f"10 people x 24 events, {name}", events_of_people(strengths), 10, CLASSES)
        for name, strengths in (
            ("weak", (0.6, 0.6)),
            ("good", (2.0, 1.6)),
            ("near the ceiling", (3.5, 3.5)),
        )
    ),
    *(
        Setting(f"38 people, 9 positive, {name}", people_of_two_classes(s, 38, 9), 38, CLASSES)
        for name, s in (
            ("weak", (0.5, 0.5)),
            ("good", (1.8, 1.2)),
            ("near the ceiling", (2.8, 2.8)),
            ("near the ceiling and good", (2.8, 1.8)),
        )
    ),
    *(
        Setting(f"33 people identified, {name}", fingerprints(signals, 33), 33, ("accuracy",))
        for name, signals in (("few", (0.4, 0.4)), ("most", (0.8, 0.6)), ("nearly all", (1.0, 1.0)))
    ),
    Setting("60 people of 30 families", families((1.2, 1.2), 60), 60, CLASSES),
    *(
        Setting(f"120 people, regression, {name}", draw, 120, NUMBERS)
        for name, draw in (
            ("weak", people_with_a_number((0.3, 0.3), 120)),
            ("good", people_with_a_number((0.7, 0.5), 120)),
            ("heavy tails", people_with_a_number((0.5, 0.5), 120, heavy_tails=True)),
        )
    ),
)


# --- simulation -----------------------------------------------------------------------------------


def simulate(
    setting: Setting, n_tests: int, *, n_population: int = 200_000, with_p: bool = True
) -> list[Coverage]:
    """Coverage of every metric of ``setting`` and of the paired difference, over ``n_tests``."""
    design = Design("one_split", n_train=0, n_test=setting.n_people)
    truth = [metrics_of(run) for run in setting.draw(np.random.default_rng(1), n_population)]
    single: dict[str, list[tuple[Bounds, Bounds]]] = {name: [] for name in setting.metrics}
    paired: dict[str, list[tuple[Bounds, Bounds]]] = {name: [] for name in setting.metrics}
    p_values: dict[str, list[float]] = {name: [] for name in setting.metrics}
    verdicts: dict[str, list[str]] = {name: [] for name in setting.metrics}
    for seed in progress_bar(range(n_tests), desc=setting.name):
        a, b = setting.draw(np.random.default_rng([2, seed]), None)
        intervals = summarise([a], design)
        resampled_a, resampled_b = (percentile_bootstrap(run, seed) for run in (a, b))
        for name in setting.metrics:
            single[name].append((intervals[name], percentile(resampled_a[name])))
            n_exchanges = N_EXCHANGES if with_p and name in TESTED else 1
            difference = compare([a], [b], name, design, n_exchanges=n_exchanges, seed=seed)
            of_difference = percentile(resampled_a[name] - resampled_b[name])
            paired[name].append((difference.interval, of_difference))
            p_values[name].append(difference.p)
            verdicts[name].append(verdict(difference.interval, difference.p))
    found = []
    for name in setting.metrics:
        found.append(Coverage(setting.name, name, False, truth[0][name],
                              *_coverage(single[name], truth[0][name])))  # fmt: skip
    for name in setting.metrics:
        difference = truth[0][name] - truth[1][name]
        tests = (np.nan, np.nan)
        if with_p and name in TESTED:
            tests = (
                float(np.mean(np.array(p_values[name]) < 0.05)),
                float(np.mean([one == "borderline" for one in verdicts[name]])),
            )
        found.append(Coverage(setting.name, name, True, difference,
                              *_coverage(paired[name], difference), *tests))  # fmt: skip
    return found


def _coverage(
    intervals: Sequence[tuple[Bounds, Bounds]], truth: float
) -> tuple[float, float, float, float]:
    """Covered and median width, of ours and of the percentile bootstrap; NaN covers nothing."""
    low, high = np.array(intervals).transpose(2, 1, 0)  # [2 methods, tests]
    covered = ((low <= truth) & (truth <= high)).mean(axis=1)
    width = np.nanmedian(high - low, axis=1)
    return float(covered[0]), float(width[0]), float(covered[1]), float(width[1])


def percentile_bootstrap(run: ScoredRun, seed: int) -> dict[str, np.ndarray]:
    """Metrics in resamples of the clusters: what the percentile interval is read off."""
    clusters, position = np.unique(run.clusters, return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(
        len(clusters), np.full(len(clusters), 1 / len(clusters)), size=N_RESAMPLES
    )
    return weighted_metrics(run, draws[:, position].astype(float))


def percentile(samples: np.ndarray) -> Bounds:
    """The middle 95 % of bootstrap samples."""
    low, high = np.nanquantile(samples, [0.025, 0.975])
    return float(low), float(high)


# --- table ----------------------------------------------------------------------------------------


def table(found: Sequence[Coverage], n_tests: int) -> str:
    """Markdown, a line per setting and metric."""
    header = ["Setting", "Metric", "Truth", "Coverage", "Width", "Bootstrap", "its width"]
    header += ["p < .05", "borderline"]
    lines = []
    for row in found:
        error = np.sqrt(row.covered * (1 - row.covered) / n_tests)
        title = METRIC_TITLES[row.metric].removesuffix(" (z)")
        line = [row.setting, f"{title}, a - b" if row.paired else title, f"{row.truth:.3f}"]
        line += [f"{row.covered:.3f} ± {error:.3f}", f"{row.width:.3f}"]
        line += [f"{row.percentile_covered:.3f}", f"{row.percentile_width:.3f}"]
        tests = (row.significant, row.borderline)
        line += ["" if np.isnan(value) else f"{value:.3f}" for value in tests]
        lines.append(line)
    return markdown_table(header, lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate every setting and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n_tests", type=int, default=1000, help="test sets a setting")
    parser.add_argument("--quick", action="store_true", help="200 test sets, no p-values")
    parser.add_argument("--only", help="settings whose name holds this text")
    parser.add_argument("--out", type=Path, help="also write the table here")
    flags = parser.parse_args(arguments)
    n_tests = 200 if flags.quick else flags.n_tests
    found = []
    for setting in SETTINGS:
        if flags.only is None or flags.only in setting.name:
            found += simulate(setting, n_tests, with_p=not flags.quick)
    text = table(found, n_tests)
    print(text, end="")
    if flags.out is not None:
        write_text(flags.out, text)


if __name__ == "__main__":
    run_main(main)
