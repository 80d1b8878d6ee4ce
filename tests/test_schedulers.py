"""Schedules are functions of the optimizer step, with the end points of spec 5 and 7."""

import pytest

from src.utils.schedulers import Schedule

SCHEDULE = Schedule(
    total=300,
    warmup=40,
    start_lr=5e-5,
    peak_lr=1e-3,
    final_lr=1e-6,
    first_weight_decay=0.04,
    final_weight_decay=0.4,
    ema=(0.996, 1.0),
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
    """The release ends at .9965, as it counts in micro-batches (spec 8.3)."""
    assert SCHEDULE.momentum(1) == 0.996
    assert SCHEDULE.momentum(300) == 1.0
    steps = [SCHEDULE.momentum(s + 1) - SCHEDULE.momentum(s) for s in range(1, 300)]
    assert max(steps) == pytest.approx(min(steps))


def test_no_warmup_starts_at_the_peak():
    schedule = Schedule(100, 0, 0.0, 1e-3, 0.0, 0.0, 0.0, (1.0, 1.0))
    assert schedule.lr(1) == pytest.approx(1e-3, rel=1e-3)
