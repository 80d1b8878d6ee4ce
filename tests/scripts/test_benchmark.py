"""The benchmark's limits: every normalisation has one, and one that is exceeded is said."""

import importlib.util
import sys

import pytest

from src.datasets.normalization import METHODS
from src.masks.modes import MODES


@pytest.fixture(scope="module")
def benchmark(pytestconfig):
    path = pytestconfig.rootpath / "scripts" / "benchmark.py"
    spec = importlib.util.spec_from_file_location("benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(benchmark, monkeypatch, pytestconfig):
    """The program at the size of the debug config, for as long as it takes to see it run."""
    monkeypatch.setattr(benchmark, "ROUNDS", 1)

    def main(*flags):
        config = str(pytestconfig.rootpath / "configs" / "debug.yaml")
        command = ["benchmark.py", "--fname", config, "--devices", "cpu", "--repeats", "1", *flags]
        monkeypatch.setattr(sys, "argv", command)
        return benchmark.main()

    return main


def test_every_normalisation_and_every_mode_of_masks_has_a_limit(benchmark):
    assert set(benchmark.SAMPLE_LIMITS) == set(METHODS)
    assert set(benchmark.MASK_LIMITS) == set(MODES)


def test_the_check_ends_with_1_and_a_line_for_each_limit_exceeded(
    benchmark, run, monkeypatch, capsys
):
    generous = dict.fromkeys(METHODS, 1e9)
    monkeypatch.setattr(benchmark, "SAMPLE_LIMITS", generous)
    monkeypatch.setattr(benchmark, "MASK_LIMITS", dict.fromkeys(MODES, 1e9))
    assert run("--check") == 0
    printed = capsys.readouterr()
    assert "exceeded" not in printed.err
    assert printed.out.count(" x the slice") == len(METHODS)
    assert printed.out.count(" x their stacking") == len(MODES)
    assert "training step" not in printed.out

    monkeypatch.setattr(benchmark, "SAMPLE_LIMITS", generous | {"zscore_roi": 1e-9})
    monkeypatch.setattr(benchmark, "MASK_LIMITS", dict.fromkeys(MODES, 1e9) | {"roi": 1e-9})
    assert run("--check") == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "exceeded" in line]
    assert len(lines) == 2
    assert "sample, zscore_roi" in lines[0]
    assert "masks of 16 samples, roi" in lines[1]


def test_a_limit_exceeded_once_is_measured_again(benchmark, run, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "SAMPLE_LIMITS", dict.fromkeys(METHODS, 1e9))
    measured = iter([5.0, 0.5])

    def measure_masks(config, rounds):
        return [benchmark.Cost("masks of 16 samples", next(measured), "their stacking", 1.0, 1.0)]

    monkeypatch.setattr(benchmark, "measure_masks", measure_masks)
    assert run("--check") == 0
    printed = capsys.readouterr()
    assert "0.50 x their stacking" in printed.out
    assert "exceeded" not in printed.err
    assert next(measured, None) is None


def test_without_it_a_training_step_is_measured_too(run, capsys):
    assert run() == 0
    printed = capsys.readouterr().out
    for name in ("training step, sdpa", "training step, normal", "slowest masks against a step"):
        assert name in printed


def test_ratios_are_those_of_the_times(benchmark):
    cost = benchmark.Cost("sample, robust", 3e-6, "the slice", 2e-6, 1.5)
    assert cost.ratio == pytest.approx(1.5)
    assert benchmark.exceeded([cost._replace(limit=1.6)]) == []
    assert len(benchmark.exceeded([cost._replace(limit=1.4)])) == 1


def test_the_shortest_of_each_is_taken(benchmark, monkeypatch):
    clock = iter([0, 9, 9, 10, 10, 13, 13, 20, 20, 21, 21, 29])  # (9, 1), (3, 7), (1, 8)
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    assert benchmark.shortest_seconds([lambda: None, lambda: None], 2) == [1, 7]
