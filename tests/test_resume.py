"""Going on with a run: exactly as if it had never stopped, or not at all."""

import json
import os
import re
import shutil
import signal
import threading
import time
import weakref
from pathlib import Path
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
import torch

from src import pretrain_state, train
from src.config import Config
from src.datasets.folder import DataFolder
from src.datasets.folder.fingerprint import runs_fingerprint
from src.datasets.prepare.synthetic import write_synthetic
from src.utils.distributed import Ranks, launch
from src.utils.errors import UserError
from tests.conftest import (
    COMPONENTS,
    ROIS,
    flat_weights,
    fork_server,
    forked_workers,
    losses,
    read_latest,
    tiny_config,
    train_here,
)

LATEST = "jepa-latest.pth.tar"
CPU = torch.device("cpu")
TIMEOUT = 240  # seconds; a hang is a failure


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("logs") / "run"
    train_here(tiny_config(data, folder))
    return folder


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory) -> Path:
    """The same run, stopped after step 3 of 6."""
    folder = tmp_path_factory.mktemp("logs") / "run"
    train_until(3, tiny_config(data, folder))
    return folder


def train_until(
    step: int, config: Config, ranks: Ranks | None = None, resume: bool = False
) -> None:
    """Train until a signal to this process, the last of ``ranks``, stops all after ``step``."""
    ranks = ranks or Ranks(CPU)
    last = ranks.rank == ranks.world_size - 1
    real = train.train_step

    def train_step(current, *args, **kwargs):
        record = real(current, *args, **kwargs)
        if last and current == step:
            os.kill(os.getpid(), signal.SIGUSR1)
        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train_step", train_step)
        with pytest.raises(SystemExit) as ended:
            train.main(ranks, config, resume)
    assert ended.value.code == 128 + signal.SIGUSR1


def copy_of(folder: Path, to: Path) -> Path:
    """A run that a test may change."""
    return Path(shutil.copytree(folder, to))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run but its log and revision, which note each start, and TensorBoard's."""
    files = [p for p in folder.iterdir() if p.is_file()]
    return {p.name: p.read_bytes() for p in files if p.name not in ("log.txt", "revision.txt")}


def test_resuming_a_finished_run_repeats_its_verdict_and_changes_nothing(finished, data, tmp_path):
    folder = copy_of(finished, tmp_path / "run")
    before = contents(folder)
    said = (folder / "log.txt").read_text()
    (folder / f".{LATEST}.{uuid4().hex}").touch()  # of a process that was killed
    train_here(tiny_config(data, folder), resume=True)
    after = contents(folder)
    assert after.keys() == before.keys()
    for name in (LATEST, "jepa-ep2.pth.tar", "jepa-ep3.pth.tar", "jepa_r0.csv", "masks.png"):
        assert after[name] == before[name], name

    def verdict(text: str) -> str:
        return text.splitlines()[-1].split("INFO")[1]

    again = (folder / "log.txt").read_text().removeprefix(said)
    assert "learning" in verdict(said).lower()
    assert verdict(again) == verdict(said)
    assert "the run is finished: 6 of 6 steps are done" in again
    assert "the first step is running" in said
    assert "the first step is running" not in again
    assert len((folder / "revision.txt").read_text().splitlines()) == 2


def test_a_resumed_run_is_compared_with_the_untrained_network_of_its_beginning(
    finished, stopped, data, tmp_path
):
    folder = copy_of(stopped, tmp_path / "run")
    resumed, whole = train_here(tiny_config(data, folder), resume=True), read_latest(finished)
    assert resumed["monitors"] == whole["monitors"]
    assert resumed["monitors"]["untrained"]["people"] != resumed["monitors"]["last"]["people"]


def test_a_run_from_before_signal_r2_is_resumed_and_says_that_it_was_not_measured(
    stopped, data, tmp_path
):
    folder = copy_of(stopped, tmp_path / "run")
    state = read_latest(folder)
    latent = {name: state["monitors"]["first"][name] for name in ("r2", "variance", "rankme")}
    state["monitors"] = {"first": latent, "last": latent}
    torch.save(state, folder / LATEST)
    train_here(tiny_config(data, folder), resume=True)
    said = (folder / "log.txt").read_text().splitlines()
    assert "not measured" in said[-1]
    assert "untrained +nan" in next(line for line in reversed(said) if "held-out people" in line)


def test_going_on_from_a_finished_run_elsewhere_says_that_it_is_finished(finished, data, tmp_path):
    folder, named = tmp_path / "run", finished / LATEST
    train.main(Ranks(CPU), tiny_config(data, folder, f"meta.read_checkpoint={named}"), True)
    said = (folder / "log.txt").read_text()
    assert "the run is finished: 6 of 6 steps are done" in said
    assert f"checkpoint: {named}" in said
    assert not (folder / LATEST).exists()


def test_another_number_of_loaders_gives_the_same_bits(finished, stopped, data, tmp_path):
    folder = copy_of(stopped, tmp_path / "run")
    resumed = train_here(tiny_config(data, folder, "data.num_workers=2"), resume=True)
    assert torch.equal(flat_weights(resumed), flat_weights(read_latest(finished)))
    assert losses(folder) == losses(finished)


def test_a_checkpoint_from_before_a_key_existed_has_its_default(finished, stopped, data, tmp_path):
    folder = copy_of(stopped, tmp_path / "run")
    state = read_latest(folder)
    del state["config"]["data"]["bad_rois"]
    torch.save(state, folder / LATEST)
    with pytest.raises(UserError, match=r"data\.bad_rois is 'zero', was 'exclude'"):
        train_here(tiny_config(data, folder, "data.bad_rois=zero"), resume=True)
    resumed = train_here(tiny_config(data, folder), resume=True)
    assert torch.equal(flat_weights(resumed), flat_weights(read_latest(finished)))


# ----------------------------------------------------------------------------------- other data
def other_data(path: Path, people: int = 12, swap: bool = False) -> Path:
    """Data that fit the config as well: of more people, or with two ROIs in each other's place."""
    write_synthetic(path, people, n_rois=ROIS, frames=100, tr=2.0, valid=2, test=2)
    gradients = np.random.default_rng(0).normal(size=(ROIS, COMPONENTS))
    np.savetxt(path / "gradients.csv", gradients, delimiter=",")
    if swap:
        described = json.loads((path / "dataset.json").read_text())
        labels = described["roi_labels"]
        labels[3], labels[4] = labels[4], labels[3]
        (path / "dataset.json").write_text(json.dumps(described))
    return path


def swap_people(path: Path, what: str) -> None:
    """Exchange the splits of a person of training and one of validation, or two persons' series."""
    runs = pd.read_csv(path / "participants.tsv", sep="\t", dtype=str)
    if what == "split":
        one, other = (runs.index[runs["split"] == part][0] for part in ("train", "valid"))
        runs.loc[[one, other], "split"] = ["valid", "train"]
        runs.to_csv(path / "participants.tsv", sep="\t", index=False)
        return
    one, other = runs.index[runs["split"] == "train"][:2]
    series = np.load(path / "timeseries.npy", mmap_mode="r+")
    by_run = series.reshape(len(runs), -1)  # all are as long
    by_run[[one, other]] = by_run[[other, one]]
    series.flush()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("split", r"trained on other people\. Not in the training split of \S+: synth-\d+\. There"),
        ("series", r"has the same people for training, but other runs"),
    ],
)
def test_two_people_in_each_others_place_are_other_data(stopped, data, tmp_path, what, message):
    folder = copy_of(stopped, tmp_path / "run")
    other = copy_of(data, tmp_path / "other")
    swap_people(other, what)
    with pytest.raises(UserError, match=message):
        train_here(tiny_config(other, folder), resume=True)


def test_a_checkpoint_knows_whom_it_has_seen(stopped, data):
    folder = DataFolder(data)
    state = read_latest(stopped)
    train_rows = folder.rows("train")
    assert state["training_people"] == sorted(folder.runs["participant_id"][train_rows])
    assert state["runs_fingerprint"] == runs_fingerprint(folder, train_rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"people": 13}, r"trained on 8 clips, and .*other has 9"),
        ({"people": 11}, r"trained on 8 clips, and .*other has 7"),
        ({"swap": True}, r"its ROIs are not those of the data"),
    ],
)
def test_other_data_is_refused_and_the_checkpoint_untouched(stopped, tmp_path, change, message):
    folder = copy_of(stopped, tmp_path / "run")
    other = other_data(tmp_path / "other", **change)
    before = contents(folder)
    with pytest.raises(UserError, match=rf"cannot resume from .*{LATEST}: .*{message}"):
        train_here(tiny_config(other, folder), resume=True)
    assert contents(folder) == before


def test_the_same_data_elsewhere_is_the_same_run(finished, stopped, tmp_path):
    folder = copy_of(stopped, tmp_path / "run")
    moved = other_data(tmp_path / "moved")
    resumed = train_here(tiny_config(moved, folder), resume=True)
    assert torch.equal(flat_weights(resumed), flat_weights(read_latest(finished)))


def test_a_run_keeps_its_gradients_whatever_the_csv_says_now(finished, stopped, data, tmp_path):
    folder, other = copy_of(stopped, tmp_path / "run"), tmp_path / "other.csv"
    np.savetxt(other, np.random.default_rng(1).normal(size=(ROIS, COMPONENTS)), delimiter=",")
    config = tiny_config(data, folder, f"data.gradient_csv_path={other}")
    resumed = train_here(config, resume=True)
    assert torch.equal(flat_weights(resumed), flat_weights(read_latest(finished)))
    assert "data.gradient_csv_path is not read" in (folder / "log.txt").read_text()


# ------------------------------------------------------------------------------ which checkpoint
def test_read_checkpoint_begins_a_folder_and_the_latest_goes_on(
    finished, stopped, data, tmp_path, monkeypatch
):
    """A scheduler starts the same command each time: it must not begin again and again."""
    config = tiny_config(
        data,
        tmp_path / "run",
        "meta.load_checkpoint=true",
        f"meta.read_checkpoint={stopped / LATEST}",
    )
    train_until(5, config)
    train_here(config)
    latest = tmp_path / "run" / LATEST
    assert gone_on_from(latest.parent) == [(str(stopped / LATEST), 3), (str(latest), 5)]
    assert torch.equal(
        flat_weights(read_latest(latest.parent)), flat_weights(read_latest(finished))
    )


def gone_on_from(folder: Path) -> list[tuple[str, int]]:
    """File and step that each start of the run went on from, as its log says."""
    found = re.findall(r"going on from (\S+), after step (\d+)", (folder / "log.txt").read_text())
    return [(path, int(step)) for path, step in found]


def test_an_older_checkpoint_named_explicitly_is_begun_from_once(finished, data, tmp_path):
    """Back to epoch 2 of a finished run; the same command again goes on with what it did since."""
    folder = copy_of(finished, tmp_path / "run")
    (folder / "log.txt").unlink()
    epoch_2 = "jepa-ep2.pth.tar"
    config = tiny_config(
        data, folder, f"meta.read_checkpoint={epoch_2}", "meta.load_checkpoint=true"
    )
    train_until(5, config)
    assert read_latest(folder)["step"] == 5
    assert read_latest(folder)["begun_from"] == {"file": epoch_2, "step": 4}
    resumed = train_here(config)
    assert gone_on_from(folder) == [(str(folder / epoch_2), 4), (str(folder / LATEST), 5)]
    assert torch.equal(flat_weights(resumed), flat_weights(read_latest(finished)))
    assert losses(folder) == losses(finished)
    # Another file is another wish, which this run has not followed yet.
    shutil.copy(folder / epoch_2, folder / "mine.pth.tar")
    train_until(5, tiny_config(data, folder, "meta.read_checkpoint=mine.pth.tar"), resume=True)
    assert gone_on_from(folder)[-1] == (str(folder / "mine.pth.tar"), 4)


def test_a_named_checkpoint_that_nothing_asks_to_go_on_from_is_said(data, tmp_path):
    config = tiny_config(
        data, tmp_path / "run", "meta.read_checkpoint=x.pth.tar", "optimization.epochs=1"
    )
    train_here(config)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "meta.read_checkpoint is x.pth.tar and is not read" in log


def test_read_checkpoint_may_be_a_name_in_the_folder(finished, data, tmp_path, monkeypatch):
    """``jepa-ep2``, from a folder whose latest was lost."""
    folder = copy_of(finished, tmp_path / "run")
    (folder / LATEST).unlink()
    monkeypatch.chdir(tmp_path)
    config = tiny_config(data, folder, "meta.read_checkpoint=jepa-ep2.pth.tar")
    resumed = train_here(config, resume=True)
    assert "from step 4" in (folder / "revision.txt").read_text().splitlines()[-1]
    assert torch.equal(flat_weights(resumed), flat_weights(read_latest(finished)))
    assert losses(folder) == losses(finished)


# -------------------------------------------------------------------------- incomplete checkpoints
@pytest.mark.parametrize(
    "key", ["rng", "opt", "predictor", "target_encoder", "monitors", "n_clips", "training_people"]
)
def test_a_checkpoint_that_lacks_something_is_one_error(stopped, data, tmp_path, key):
    folder = copy_of(stopped, tmp_path / "run")
    state = read_latest(folder)
    del state[key]
    torch.save(state, folder / LATEST)
    before = contents(folder)
    with pytest.raises(UserError, match=rf"{LATEST} has no {key}; it has: ") as error:
        train_here(tiny_config(data, folder), resume=True)
    assert "\n" not in str(error.value)
    assert contents(folder) == before


def test_weights_of_another_shape_are_one_error(stopped, data, tmp_path):
    folder = copy_of(stopped, tmp_path / "run")
    state = read_latest(folder)
    state["encoder"]["module.norm.weight"] = torch.ones(7)
    torch.save(state, folder / LATEST)
    with pytest.raises(UserError, match=r"does not fit this encoder: norm\.weight is \(7,\)"):
        train_here(tiny_config(data, folder), resume=True)


# ---------------------------------------------------------------------------------- killed
def test_a_process_killed_while_it_writes_leaves_the_checkpoint_before(data, tmp_path):
    """The second checkpoint waits half written; the next start removes it and goes on."""
    folder = tmp_path / "run"
    config = tiny_config(data, folder, "optimization.epochs=2")
    child = fork_server().Process(target=train_with_a_slow_disk, args=(config,))
    child.start()
    deadline = time.monotonic() + TIMEOUT
    while not ((folder / LATEST).exists() and list(folder.glob(f".{LATEST}.*"))):
        assert time.monotonic() < deadline
        assert child.is_alive()
        time.sleep(0.02)
    child.kill()
    child.join()
    assert read_latest(folder)["step"] == 2
    assert list(folder.glob(f".{LATEST}.*"))
    assert train_here(config, resume=True)["step"] == 4
    assert not list(folder.glob(".*"))


def train_with_a_slow_disk(config: Config) -> None:
    """Train; from the second checkpoint on, half of the file is written and then nothing."""
    torch.set_num_threads(1)
    real = torch.save

    def save(state, file):
        if state["step"] == 2:
            real(state, file)
            return
        file.write(b"x" * 100)
        file.flush()
        threading.Event().wait()

    torch.save = save
    train_here(config)


# ----------------------------------------------------------------------------------- memory
def test_a_resumed_run_keeps_one_copy_of_its_weights(stopped, data, tmp_path, monkeypatch):
    folder = copy_of(stopped, tmp_path / "run")
    read, alive = [], []
    load_checkpoint, train_step = pretrain_state.load_checkpoint, train.train_step

    def load(path):
        state = load_checkpoint(path)
        for part in ("encoder", "predictor", "target_encoder"):
            read.extend(weakref.ref(tensor) for tensor in state[part].values())
        return state

    def step(number, batches, networks, optimizer, *args):
        alive.append(sum(reference() is not None for reference in read))
        return train_step(number, batches, networks, optimizer, *args)

    monkeypatch.setattr(pretrain_state, "load_checkpoint", load)
    monkeypatch.setattr(train, "train_step", step)
    train_here(tiny_config(data, folder), resume=True)
    assert len(read) > 30
    assert alive == [0, 0, 0]


# ------------------------------------------------------------------------------- number of devices
def train_two_steps(ranks: Ranks, config: Config) -> None:
    """Worker of :func:`launch`: a signal to the second process alone stops both."""
    train_until(2, config, ranks)


def test_two_devices_go_on_as_one_with_twice_the_batch(data, tmp_path):
    once = "meta.accumulation_steps=1"
    whole = train_here(tiny_config(data, tmp_path / "whole", once, "data.batch_size=4"))
    folder = tmp_path / "run"
    with forked_workers():
        launch(train_two_steps, [CPU, CPU], tiny_config(data, folder, once))
    state = read_latest(folder)
    assert (state["step"], state["world_size"], state["batch_size"]) == (2, 2, 2)

    with pytest.raises(UserError, match=r"data\.batch_size x devices is 2, was 4"):
        train_here(tiny_config(data, folder, once), resume=True)
    resumed = train_here(tiny_config(data, folder, once, "data.batch_size=4"), resume=True)
    assert (resumed["step"], resumed["world_size"], resumed["batch_size"]) == (6, 1, 4)
    assert losses(folder) == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    # Adam divides by the gradient's size, so rounding shows up in weights whose gradient is zero.
    assert (flat_weights(resumed) - flat_weights(whole)).abs().mean() < 1e-6
