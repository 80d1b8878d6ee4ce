"""What a run says of its monitors: in its log, table, TensorBoard and checkpoint."""

import csv

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.monitors import COLUMNS
from tests.conftest import tiny_config, train_here


def test_every_column_is_in_log_table_tensorboard_and_checkpoint(data, tmp_path):
    monitors = train_here(tiny_config(data, tmp_path / "run"))["monitors"]
    with (tmp_path / "run" / "jepa_r0.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["signal_r2"]]
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in COLUMNS:
        assert float(rows[-1][name]) == pytest.approx(monitors["last"][name])
        events = board.Scalars(f"monitor/{name}")
        assert [event.step for event in events] == [0, 2, 4, 6]
        assert events[0].value == pytest.approx(monitors["first"][name])
    (event,) = board.Scalars("monitor/signal_r2_untrained")
    assert event.value == pytest.approx(monitors["untrained"]["signal_r2"])
    last = monitors["last"]
    line = (
        f"after step 6: signal R2 {last['signal_r2']:+.4f} (untrained {event.value:+.4f}), "
        f"forecast R2 {last['forecast_r2']:+.4f}; latent R2 {last['r2']:+.4f}"
    )
    assert line in (tmp_path / "run" / "log.txt").read_text()


def test_a_run_that_predicts_no_latents_has_no_latent_r2(data, tmp_path):
    """Its verdict goes by the signal, and by the collapse of its representation."""
    folder = tmp_path / "run"
    monitors = train_here(tiny_config(data, folder, "meta.objective=mae"))["monitors"]
    missing = {"r2", "r2_clip_constant", "r2_swapped"}
    for measured in monitors.values():
        assert set(COLUMNS) - set(measured) == missing
        assert measured["variance"] > 0
    with (folder / "jepa_r0.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert {name for name in COLUMNS if not last[name]} == missing
    said = (folder / "log.txt").read_text()
    assert "latent R2" not in said
    assert "signal R2 of 2 held-out people" in said.splitlines()[-1]
