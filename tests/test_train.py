"""Pretraining in one process: what it writes, exact resume, and the ways it refuses."""

import csv
import errno
import os
import shutil
import signal
import threading
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from src import train
from src.datasets.folder import DataFolder
from src.helper import init_collator
from src.utils.checkpoint import CheckpointWriter
from src.utils.errors import UserError
from tests.conftest import (
    flat_weights,
    losses,
    overflowing,
    read_latest,
    tiny_config,
    train_here,
    train_until_stopped,
)

TIMEOUT = 240  # seconds; a hang is a failure


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("logs") / "run"
    train_here(tiny_config(data, folder))
    return folder


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGUSR1) -> None:
    """Send this process a real signal while it takes optimizer step ``step``."""
    real = train.train_step

    def train_step(current, *args, **kwargs):
        record = real(current, *args, **kwargs)
        if current == step:
            os.kill(os.getpid(), number)
        return record

    monkeypatch.setattr(train, "train_step", train_step)


def test_the_run_folder_holds_everything(finished):
    names = {path.name for path in finished.iterdir()}
    assert {
        "jepa-latest.pth.tar",
        "jepa-ep2.pth.tar",
        "jepa-ep3.pth.tar",
        "jepa_r0.csv",
        "params-ijepa.yaml",
        "revision.txt",
        "log.txt",
        "masks.png",
        "loss.png",
        "tensorboard",
    } <= names
    assert not [name for name in names if name.startswith(".")]
    assert "held-out people after step 6" in (finished / "log.txt").read_text()
    assert any((finished / "tensorboard").iterdir())


def test_the_csv_has_the_columns_of_the_release_and_a_row_per_step(finished, data):
    with (finished / "jepa_r0.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:6] == ["epoch", "itr", "loss", "mask-A", "mask-B", "time (ms)"]
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [int(row["epoch"]) for row in rows] == [1, 1, 2, 2, 3, 3]
    assert all(0 < float(row["loss"]) < 2 for row in rows)
    assert [bool(row["r2"]) for row in rows] == [False, True] * 3
    assert float(rows[-1]["momentum"]) == 1.0
    collator = init_collator(tiny_config(data, finished), seed=0)
    last = [collator.sample(2, step=micro) for micro in (1, 3, 5, 7, 9, 11)]  # of each step's two
    assert [int(row["mask-A"]) for row in rows] == [m.context.shape[1] for m in last]
    assert [int(row["mask-B"]) for row in rows] == [m.targets.shape[1] for m in last]


@pytest.mark.parametrize(
    ("mode", "tokens"),
    [
        ("roi", {(10 * 4, 6 * 4)}),  # of 26 ROIs x 4 patches: .4 and .25 of the ROIs
        ("forecast", {(13 * 3, 26)}),
        ("mixed", {(10 * 4, 6 * 4), (13 * 3, 26)}),
        ("multiblock", None),
    ],
)
def test_every_mask_mode_trains_and_goes_on(mode, tokens, data, tmp_path, monkeypatch):
    overrides = [f"meta.mask_mode={mode}", "meta.accumulation_steps=1", "optimization.epochs=2"]
    whole = train_here(tiny_config(data, tmp_path / "whole", *overrides))
    with (tmp_path / "whole" / "jepa_r0.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    drawn = {(int(row["mask-A"]), int(row["mask-B"])) for row in rows}
    assert drawn == tokens if tokens else len(drawn) > 1
    assert all(0 < float(row["loss"]) < 2 for row in rows)
    assert np.isfinite(float(rows[-1]["r2"]))
    assert (tmp_path / "whole" / "masks.png").stat().st_size > 0

    config = tiny_config(data, tmp_path / "halves", *overrides)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        train_until_stopped(config, signal.SIGUSR1)
    again = train_here(config, resume=True)
    assert torch.equal(flat_weights(again), flat_weights(whole))


def test_the_checkpoint_is_the_dict_of_the_release_and_is_enough_downstream(finished, data):
    state = read_latest(finished)
    assert {
        *("encoder", "predictor", "target_encoder", "opt", "scaler", "epoch"),
        *("loss", "batch_size", "world_size", "lr"),
    } <= set(state)
    assert all(name.startswith("module.") for name in state["encoder"])
    assert state["epoch"] == 3
    assert state["step"] == 6
    assert torch.load(finished / "jepa-ep2.pth.tar", weights_only=True)["epoch"] == 2
    for network in ("encoder", "predictor", "target_encoder"):
        gradients = state[network]["module.gradient_pos_embed"][0]
        np.testing.assert_allclose(
            gradients, np.loadtxt(data / "gradients.csv", delimiter=","), rtol=1e-6
        )
    assert state["normalization"]["median"].shape == (26,)
    assert state["roi_labels"] == list(DataFolder(data).roi_labels)
    assert state["config"] == yaml.safe_load((finished / "params-ijepa.yaml").read_text())


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(finished, data, tmp_path):
    expected = flat_weights(read_latest(finished))
    same = train_here(tiny_config(data, tmp_path / "same"))
    assert torch.equal(flat_weights(same), expected)
    workers = train_here(tiny_config(data, tmp_path / "workers", "data.num_workers=2"))
    assert torch.equal(flat_weights(workers), expected)
    other = train_here(tiny_config(data, tmp_path / "other", "meta.seed=1"))
    assert not torch.equal(flat_weights(other), expected)


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_stopped_at_any_step_and_resumed_is_bit_for_bit(
    finished, data, tmp_path, monkeypatch, step
):
    config = tiny_config(data, tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        stopped = train_until_stopped(config, signal.SIGUSR1)
    assert stopped["step"] == step
    resumed = train_here(config, resume=True)
    expected = read_latest(finished)
    assert torch.equal(flat_weights(resumed), flat_weights(expected))
    for key, value in expected["opt"]["state"].items():
        for name, tensor in value.items():
            assert torch.equal(resumed["opt"]["state"][key][name], tensor)

    assert losses(tmp_path / "run") == losses(finished)


def test_a_run_that_is_to_stop_saves_before_anything_that_takes_long(data, tmp_path, monkeypatch):
    """Its monitors are due at step 2, and it is told to stop there."""
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        stopped = train_until_stopped(tiny_config(data, tmp_path / "run"), signal.SIGUSR1)
    assert stopped["step"] == 2
    assert stopped["monitors"]["last"] == stopped["monitors"]["first"]
    with (tmp_path / "run" / "jepa_r0.csv").open() as file:
        assert [row["r2"] for row in csv.DictReader(file)] == ["", ""]


def test_sigterm_ends_the_run_cleanly_and_load_checkpoint_resumes(
    finished, data, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_after(patch, 4, signal.SIGTERM)
        config = tiny_config(data, tmp_path / "run")
        assert train_until_stopped(config, signal.SIGTERM)["step"] == 4
    config = tiny_config(data, tmp_path / "run", "meta.load_checkpoint=true")
    assert torch.equal(flat_weights(train_here(config)), flat_weights(read_latest(finished)))


def test_training_goes_on_while_a_checkpoint_is_written(data, tmp_path, monkeypatch):
    """The checkpoint of epoch 1 is not written before step 3, of epoch 2, is taken."""
    at_step_3 = threading.Event()
    real_step, real_save = train.train_step, torch.save

    def train_step(step, *args):
        if step == 3:
            at_step_3.set()
        return real_step(step, *args)

    def save(state, file):
        assert at_step_3.wait(TIMEOUT)
        real_save(state, file)

    monkeypatch.setattr(train, "train_step", train_step)
    monkeypatch.setattr(torch, "save", save)
    assert train_here(tiny_config(data, tmp_path / "run"))["step"] == 6


def test_what_is_written_is_the_state_of_its_step(data, tmp_path, monkeypatch, finished):
    """Weights and optimizer go on changing while the file is written."""
    done_training = threading.Event()
    real_step, real_save = train.train_step, torch.save

    def train_step(step, *args):
        record = real_step(step, *args)
        if step == 4:
            done_training.set()
        return record

    def save(state, file):
        assert done_training.wait(TIMEOUT)
        real_save(state, file)

    monkeypatch.setattr(train, "train_step", train_step)
    monkeypatch.setattr(torch, "save", save)
    folder = tmp_path / "run"
    config = tiny_config(data, folder, "logging.checkpoint_every=1")
    train_here(config)
    (folder / "jepa-latest.pth.tar").unlink()
    (folder / "jepa-ep1.pth.tar").rename(folder / "jepa-latest.pth.tar")
    assert read_latest(folder)["step"] == 2
    resumed = train_here(config, resume=True)
    assert torch.equal(flat_weights(resumed), flat_weights(read_latest(finished)))


def test_a_checkpoint_that_cannot_be_written_ends_the_run_at_the_next_step(
    data, tmp_path, monkeypatch
):
    steps, writes = [], []
    step_3_runs = threading.Event()
    real_step, real_write = train.train_step, CheckpointWriter.write

    def train_step(step, *args):
        steps.append(step)
        if step == 3:
            step_3_runs.set()
            wait(writes, TIMEOUT)
        return real_step(step, *args)

    def write(self, *args):
        real_write(self, *args)
        writes.append(self._pending)

    def save(state, file):
        assert step_3_runs.wait(TIMEOUT)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(train, "train_step", train_step)
    monkeypatch.setattr(CheckpointWriter, "write", write)
    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(UserError, match=r"jepa-latest.*: No space left on device"):
        train_here(tiny_config(data, tmp_path / "run", "optimization.epochs=4"))
    assert max(steps) == 3


def test_a_finished_run_is_never_overwritten(finished, data):
    before = (finished / "jepa-latest.pth.tar").read_bytes()
    with pytest.raises(UserError, match=r"already holds a run.*--resume"):
        train_here(tiny_config(data, finished))
    assert (finished / "jepa-latest.pth.tar").read_bytes() == before


def test_nor_is_one_of_which_only_epochs_were_kept(finished, data, tmp_path):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    (folder / "jepa-latest.pth.tar").unlink()
    before = (folder / "jepa_r0.csv").read_bytes()
    message = r"already holds a run \(jepa-ep3.*--resume meta.read_checkpoint=jepa-ep3.pth.tar,"
    with pytest.raises(UserError, match=message):
        train_here(tiny_config(data, folder))
    assert (folder / "jepa_r0.csv").read_bytes() == before


def test_resume_needs_a_checkpoint_of_this_run(finished, data, tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint .*jepa-latest.*without --resume.*FILE\.$"):
        train_here(tiny_config(data, tmp_path / "none"), resume=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "jepa-ep3.pth.tar").touch()
    with pytest.raises(UserError, match=r"read_checkpoint=FILE \(there are jepa-ep3\.pth\.tar\)"):
        train_here(tiny_config(data, tmp_path / "kept"), resume=True)
    with pytest.raises(UserError, match=r"optimization\.lr is 0\.5, was 0\.001"):
        train_here(tiny_config(data, finished, "optimization.lr=0.5"), resume=True)
    released = Path(__file__).parent / "reference" / "tiny_mapping.pth.tar"
    with pytest.raises(UserError, match="neither config nor step"):
        train_here(
            tiny_config(data, tmp_path / "x", f"meta.read_checkpoint={released}"), resume=True
        )
    truncated = tmp_path / "truncated"
    truncated.mkdir()
    whole = (finished / "jepa-latest.pth.tar").read_bytes()
    (truncated / "jepa-latest.pth.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"jepa-latest\.pth\.tar cannot be read"):
        train_here(tiny_config(data, truncated), resume=True)


def test_a_loss_that_is_not_finite_names_step_samples_and_the_last_good_checkpoint(
    data, tmp_path, monkeypatch
):
    config = tiny_config(data, tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        good = train_until_stopped(config, signal.SIGUSR1)
    monkeypatch.setattr(train, "train_step", overflowing(train.train_step, at_step=4))
    with pytest.raises(UserError) as error:
        train_here(config, resume=True)
    message = str(error.value)
    assert "optimizer step 4 is not finite" in message
    assert "synth-" in message
    assert "jepa-latest.pth.tar" in message
    assert torch.equal(flat_weights(read_latest(tmp_path / "run")), flat_weights(good))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.data_dir=nowhere", "nowhere"),
        ("data.crop_size=[20, 64]", "asks for 20 ROIs"),
        ("data.crop_size=[26, 160]", "too short"),
        ("data.gradient_csv_path=null", "needs data.gradient_csv_path"),
        ("data.gradient_csv_path=nowhere.csv", "nowhere.csv"),
        ("data.batch_size=50", "global batch"),
        ("mask.min_keep=5000", "min_keep"),
    ],
)
def test_bad_input_is_said_before_anything_is_trained(data, tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        train_here(tiny_config(data, tmp_path / "run", override))
    assert not (tmp_path / "run" / "jepa-latest.pth.tar").exists()


def test_gradients_with_the_wrong_number_of_rows(data, tmp_path):
    np.savetxt(tmp_path / "short.csv", np.zeros((7, 5)), delimiter=",")
    config = tiny_config(data, tmp_path / "run", f"data.gradient_csv_path={tmp_path}/short.csv")
    with pytest.raises(UserError, match=r"short\.csv"):
        train_here(config)


def test_options_that_only_change_speed_change_no_loss(finished, data, tmp_path):
    expected = losses(finished)
    for name, override in (
        ("normal", "meta.attn_mode=normal"),
        ("recompute", "meta.gradient_checkpointing=true"),
    ):
        train_here(tiny_config(data, tmp_path / name, override))
        assert losses(tmp_path / name) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("add_w", ["origin", "anatomical"])
def test_other_positions_train(data, tmp_path, add_w):
    overrides = [f"meta.add_w={add_w}", "optimization.epochs=1"]
    if add_w == "anatomical":
        np.savetxt(
            tmp_path / "mni.csv", np.random.default_rng(0).normal(size=(26, 3)), delimiter=","
        )
        overrides.append(f"data.gradient_csv_path={tmp_path}/mni.csv")
    assert train_here(tiny_config(data, tmp_path / "run", *overrides))["step"] == 2
