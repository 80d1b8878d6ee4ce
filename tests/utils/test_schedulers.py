"""Schedules are functions of the optimizer step, with the end points of method 5 and 7."""

import pytest
import torch

from src.helper import init_model, init_opt
from src.utils.schedulers import Cosine, Linear, Schedule, WarmupCosine
from tests.conftest import tiny_config

SCHEDULE = Schedule(
    WarmupCosine(total=300, warmup=40, start=5e-5, peak=1e-3, final=1e-6),
    Cosine(total=300, first=0.04, final=0.4),
    Linear(total=300, first=0.996, final=1.0),
)


def test_learning_rate_warms_up_peaks_and_ends():
    assert 5e-5 < SCHEDULE.lr(1) < SCHEDULE.lr(20) < SCHEDULE.lr(40)
    assert SCHEDULE.lr(40) == pytest.approx(1e-3)
    assert SCHEDULE.lr(170) == pytest.approx((1e-3 + 1e-6) / 2)
    assert SCHEDULE.lr(300) == pytest.approx(1e-6)
    assert SCHEDULE.lr(20) == pytest.approx((5e-5 + 1e-3) / 2)
    a_quarter = 1e-6 + (1e-3 - 1e-6) * (1 + 0.5**0.5) / 2  # of the way down a cosine
    assert SCHEDULE.lr(40 + 65) == pytest.approx(a_quarter)


def test_weight_decay_rises_to_its_final_value():
    values = [SCHEDULE.weight_decay(step) for step in range(1, 301)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(0.4)
    assert values[0] == pytest.approx(0.04, abs=1e-4)


def test_momentum_starts_at_the_first_and_ends_at_exactly_one():
    """The release ends at .9965, as it counts in micro-batches (method 8.3)."""
    assert SCHEDULE.momentum(1) == 0.996
    assert SCHEDULE.momentum(300) == 1.0
    steps = [SCHEDULE.momentum(s + 1) - SCHEDULE.momentum(s) for s in range(1, 300)]
    assert max(steps) == pytest.approx(min(steps))


def test_no_warmup_starts_at_the_peak():
    assert WarmupCosine(100, 0, 0.0, 1e-3, 0.0)(1) == pytest.approx(1e-3, rel=1e-3)


def test_ipe_scale_stretches_everything_but_the_warmup(tmp_path):
    """Method 8.13: of 10 epochs of 5 steps, 2 of them warm-up, at twice the length."""
    warmup = ("optimization.epochs=10", "optimization.warmup=2", "optimization.ipe_scale=2")
    config = tiny_config(tmp_path, tmp_path, *warmup)
    networks = init_model(config, torch.randn(config.grid[0], 4), torch.device("cpu"))
    _, schedule = init_opt(networks, config, steps_per_epoch=5)
    assert schedule.lr.warmup == 10
    assert schedule.lr(10) == config.optimization.lr
    assert {schedule.lr.total, schedule.weight_decay.total, schedule.momentum.total} == {100}
    assert schedule.lr(100) == pytest.approx(config.optimization.final_lr)
