"""The clips that are measured: fixed, spread, of the people they should be of."""

import numpy as np
import pytest
import torch

from src.monitors import Monitors
from src.monitors.clips import FixedClips, people_apart
from src.utils import progress
from tests.conftest import FRAMES, ROIS, tiny_config


@pytest.mark.parametrize(
    "people", [[0, 0, 1, 1], [0, 1, 1, 1, 2, 2], [0] * 5 + [1] * 3 + [2] * 2, list(range(7))]
)
def test_neighbours_are_different_people(people):
    people = np.array(people)
    order = people_apart(people)
    assert sorted(order) == list(range(len(people)))
    around = people[order]
    assert (around != np.roll(around, 1)).all()


def test_clips_are_fixed_spread_and_kept_apart_by_person(data, tmp_path):
    config = tiny_config(data, tmp_path, "logging.monitor_clips=12")
    clips = FixedClips(config, "train", config.clip_input)
    assert len(clips) == 12
    shown, people = (torch.cat(parts) for parts in zip(*clips, strict=True))
    assert shown.shape == (12, 1, ROIS, FRAMES)
    assert len(people.unique()) == 8  # all of the training people
    assert (people != people.roll(1)).all()
    assert torch.equal(next(iter(FixedClips(config, "train", config.clip_input)))[0], shown[:2])


def test_a_run_measures_its_held_out_split_and_fits_on_the_training_split(data, tmp_path):
    config = tiny_config(data, tmp_path, "logging.monitor_clips=12")
    watched = Monitors(config, config.clip_input)
    for clips, split in ((watched.training, "train"), (watched.held_out, "valid")):
        expected = FixedClips(config, split, config.clip_input)
        assert torch.equal(*(torch.cat([x for x, _ in each]) for each in (clips, expected)))


def test_no_clip_is_measured_twice(data, tmp_path):
    """Runs of 100 frames have 5 places for a clip of 96, which 20 clips of each would share."""
    config = tiny_config(
        data, tmp_path / "run", f"data.crop_size=[{ROIS}, 96]", "logging.monitor_clips=40"
    )
    clips = FixedClips(config, "valid", config.clip_input)
    shown = torch.cat([x for x, _ in clips]).flatten(1)
    assert len(clips) == len(shown) == len(shown.unique(dim=0)) == 2 * 5


def test_a_measurement_that_takes_long_shows_how_far_it_is(data, tmp_path, monkeypatch, capsys):
    """A large network on a CPU needs an hour for it."""
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    config = tiny_config(data, tmp_path / "run", "logging.monitor_clips=4")
    list(FixedClips(config, "valid", config.clip_input))
    assert "monitors, clips of valid: batch 1 of 2, " in capsys.readouterr().err
