"""The last line of a run: what is learning, what is not, and what few people leave open."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from scipy import stats

from src.datasets.prepare.synthetic import write_synthetic
from src.helper import init_model
from src.monitors import Monitors, verdict
from src.monitors.verdict import CONFIDENCE, LEAST_GAIN, paired_gain
from tests.conftest import COMPONENTS, ROIS, tiny_config

CPU = torch.device("cpu")
BEFORE = [0.15, 0.10, 0.20, 0.12, 0.18]
MEASURED = {"variance": 0.3, "variance_share": 0.5, "rankme": 5.0, "clips": "a b"}


def measurement(people: list[float], **values: float) -> dict:
    return {**MEASURED, "signal_r2": float(np.mean(people)), "people": people, **values}


def of_run(people: list[float], **last: float) -> dict:
    first = measurement(BEFORE)
    return {"untrained": first, "first": first, "last": measurement(people, **last)}


def more(*gains: float) -> list[float]:
    return [value + gain for value, gain in zip(BEFORE, gains, strict=False)]


@pytest.mark.parametrize(
    ("monitors", "begins", "says"),
    [
        (
            of_run(more(0.05, 0.06, 0.05, 0.04, 0.05)),
            "learning: ",
            "signal R2 of 5 held-out people is +0.200, untrained +0.150, a difference of +0.050 "
            "[+0.041, +0.059]",
        ),
        (of_run(more(0.0, 0.01, 0.0, -0.01, 0.0)), "NOT LEARNING: ", "+0.000 [-0.009, +0.009]"),
        (of_run(more(-0.1, -0.1, -0.1, -0.1, -0.1)), "NOT LEARNING: ", "random weights"),
        (of_run(more(0.019, 0.019, 0.019, 0.019, 0.0189)), "NOT LEARNING: ", "by 0.02 at least"),
        (of_run(more(0.2, 0.0, 0.0, 0.0, 0.0)), "NOT CLEAR ", "more held-out people"),
        (of_run([math.nan] * 5), "NOT LEARNING: ", "nan"),
        (of_run(more(0.05, 0.06, 0.05, 0.04, 0.05), variance=0.002), "NOT LEARNING: ", "collapsed"),
    ],
)
def test_the_last_line_says_what_the_numbers_mean(monitors, begins, says):
    said = verdict(monitors)
    assert said.startswith(begins)
    assert says in said


def test_latent_r2_alone_is_no_learning():
    """Method 10: R2 .32 of the latent targets, where hidden signal has .001."""
    latent = {"r2": 0.32, "r2_clip_constant": 0.3, "r2_swapped": -0.5}
    assert verdict(of_run(BEFORE, **latent)).startswith("NOT LEARNING")


def test_one_person_says_nothing():
    before, after = measurement([0.1]), measurement([0.5])
    said = verdict({"untrained": before, "first": before, "last": after})
    assert said.startswith("NOT CLEAR")
    assert "no interval" in said


def test_the_interval_is_the_paired_t_interval_over_people():
    after = more(0.03, 0.06, 0.05, 0.01, 0.09)
    expected = stats.ttest_rel(after, BEFORE).confidence_interval(CONFIDENCE)
    gain = paired_gain(after, BEFORE)
    assert gain.mean == pytest.approx(np.subtract(after, BEFORE).mean())
    assert (gain.low, gain.high) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("people", [2, 5, 20])
def test_a_gain_at_the_limit_is_called_learning_in_one_of_forty_runs(people):
    rng = np.random.default_rng(0)
    gains = LEAST_GAIN + 0.03 * rng.standard_normal((4000, people))
    called = np.mean([paired_gain(row, np.zeros(people)).low > LEAST_GAIN for row in gains])
    assert called == pytest.approx((1 - CONFIDENCE) / 2, abs=0.008)


@pytest.mark.parametrize("bias", ["none", "gradient"])
def test_an_untrained_network_is_hardly_ever_called_learning(tmp_path, bias):
    """Every pair of networks with other random weights, as if one had become the other."""
    write_synthetic(tmp_path, 16, n_rois=ROIS, frames=100, tr=2.0, valid=5, test=1)
    config = tiny_config(
        tmp_path,
        tmp_path / "run",
        "logging.monitor_clips=20",
        f"meta.attention_bias={bias}",
        "mask.patch_size=4",
    )
    monitors = Monitors(config, config.clip_input)
    gradients = torch.from_numpy(np.random.default_rng(0).normal(size=(ROIS, COMPONENTS)))
    measured = []
    for config.meta.seed in range(12):
        networks = init_model(config, gradients.float(), CPU)
        measured.append(MEASURED | monitors.measure_signal(networks, CPU, nullcontext))
    verdicts = [
        verdict({"untrained": one, "first": one, "last": other})
        for one in measured
        for other in measured
        if one is not other
    ]
    assert all(len(one["people"]) == 5 for one in measured)
    assert np.mean([said.startswith("learning") for said in verdicts]) <= 0.05


def test_other_clips_are_not_compared():
    monitors = of_run(more(0.05, 0.06, 0.05, 0.04, 0.05), clips="a c")
    assert "logging.monitor_clips were changed" in verdict(monitors)


def test_a_run_that_began_with_weights_says_what_these_knew():
    monitors = of_run(more(0.05, 0.06, 0.05, 0.04, 0.05))
    monitors["first"] = measurement(more(0.1, 0.1, 0.1, 0.1, 0.1))
    said = verdict(monitors)
    assert said.startswith("learning: ")
    assert "+0.250 with the weights it began with" in said


def test_a_run_from_before_these_monitors_says_so():
    first = {"r2": 0.1, "variance": 0.3}
    assert "not measured" in verdict({"first": first, "last": first})
