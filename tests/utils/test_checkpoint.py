"""Checkpoint files: whole or not there, strict, and never executed."""

import argparse
import errno
import os
import pickle
import time
from uuid import uuid4

import pytest
import torch

from src.utils.checkpoint import (
    CheckpointWriter,
    checkpoint_path,
    find_checkpoint,
    load_checkpoint,
    load_network,
    network_state,
    remove_leftovers,
    save_checkpoint,
)
from src.utils.errors import UserError


def test_names_say_how_many_epochs_are_done(tmp_path):
    assert checkpoint_path(tmp_path, "jepa").name == "jepa-latest.pth.tar"
    assert checkpoint_path(tmp_path, "jepa", 300).name == "jepa-ep300.pth.tar"


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "jepa-latest.pth.tar"
    save_checkpoint(path, {"step": 1})
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        save_checkpoint(path, {"step": 2, "bad": lambda: None})
    assert load_checkpoint(path) == {"step": 1}


def test_missing_names_what_is_there(tmp_path):
    save_checkpoint(tmp_path / "jepa-ep50.pth.tar", {})
    with pytest.raises(UserError, match=r"no checkpoint .*latest.*jepa-ep50\.pth\.tar"):
        load_checkpoint(tmp_path / "jepa-latest.pth.tar")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated(tmp_path, keep):
    path = tmp_path / "x.pth.tar"
    save_checkpoint(path, {"weights": torch.zeros(1000)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    save_checkpoint(tmp_path / "y.pth.tar", {})
    with pytest.raises(
        UserError,
        match=r"x\.pth\.tar cannot be read.* another file\. In that folder: y\.pth\.tar\.$",
    ):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"hello, world\n" * 50, b"\x80\x04]", b"PK\x03\x04 no zip"])
def test_not_a_checkpoint_at_all(tmp_path, content):
    path = tmp_path / "x.pth.tar"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pth\.tar cannot be read"):
        load_checkpoint(path)


def test_a_list_is_not_a_checkpoint(tmp_path):
    torch.save([1, 2], tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds a list"):
        load_checkpoint(tmp_path / "x.pth")


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"encoder": Payload()}, "x.pth")
    with pytest.raises(UserError, match="nothing in it was executed"):
        load_checkpoint("x.pth")
    assert not (tmp_path / "executed").exists()


def test_the_namespace_of_the_release_is_allowed(tmp_path):
    torch.save({"args": argparse.Namespace(lr=1.0)}, tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth")["args"].lr == 1.0


def test_networks_load_strictly_under_the_names_of_the_release():
    network = torch.nn.Linear(3, 2)
    state = network_state(network)
    assert set(state) == {"module.weight", "module.bias"}
    load_network(torch.nn.Linear(3, 2), state, "x.pth", "encoder")
    lacking, linear = {"module.weight": state["module.weight"]}, torch.nn.Linear(3, 2)
    bias = linear.bias.clone()
    load_network(linear, lacking, "x.pth", "encoder", may_lack=("bias",))
    assert torch.equal(linear.bias, bias)
    assert torch.equal(linear.weight, state["module.weight"])
    with pytest.raises(UserError, match="bias is missing"):
        load_network(linear, lacking, "x.pth", "encoder", may_lack=("other",))
    for broken, message in (
        ({"module.weight": state["module.weight"]}, "bias is missing"),
        ({**state, "module.extra": torch.zeros(1)}, "extra is not in the model"),
        ({**state, "module.bias": torch.zeros(5)}, r"bias is \(5,\), the model needs \(2,\)"),
    ):
        with pytest.raises(UserError, match=message):
            load_network(torch.nn.Linear(3, 2), broken, "x.pth", "encoder")


# ------------------------------------------------------------------------------ in the background
def test_an_epoch_is_a_second_name_of_the_latest(tmp_path):
    with CheckpointWriter(tmp_path, "jepa") as writer:
        writer.write({"step": 1}, epoch=1)
        writer.wait()
        latest, epoch = tmp_path / "jepa-latest.pth.tar", tmp_path / "jepa-ep1.pth.tar"
        assert latest.samefile(epoch)
        writer.write({"step": 2})
    assert load_checkpoint(latest) == {"step": 2}
    assert load_checkpoint(epoch) == {"step": 1}
    assert len(list(tmp_path.iterdir())) == 2


def test_where_there_are_no_hard_links_an_epoch_is_a_copy(tmp_path, monkeypatch):
    def link(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with CheckpointWriter(tmp_path, "jepa") as writer:
        writer.write({"step": 1}, epoch=1)
    latest, epoch = tmp_path / "jepa-latest.pth.tar", tmp_path / "jepa-ep1.pth.tar"
    assert not latest.samefile(epoch)
    assert load_checkpoint(epoch) == load_checkpoint(latest) == {"step": 1}


def test_an_epoch_that_is_there_is_replaced(tmp_path):
    save_checkpoint(tmp_path / "jepa-ep1.pth.tar", {"step": "old"})
    with CheckpointWriter(tmp_path, "jepa") as writer:
        writer.write({"step": 1}, epoch=1)
    assert load_checkpoint(tmp_path / "jepa-ep1.pth.tar") == {"step": 1}


def test_one_write_at_a_time_and_all_are_done_at_the_end(tmp_path, monkeypatch):
    running, most = 0, 0
    real = torch.save

    def save(state, file):
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.05)
        real(state, file)
        running -= 1

    monkeypatch.setattr(torch, "save", save)
    with CheckpointWriter(tmp_path, "jepa") as writer:
        for step in range(4):
            writer.write({"step": step})
    assert most == 1
    assert load_checkpoint(tmp_path / "jepa-latest.pth.tar") == {"step": 3}


@pytest.mark.parametrize(
    "call",
    [
        CheckpointWriter.check,
        CheckpointWriter.wait,
        lambda writer: writer.write({"step": 2}),
        lambda writer: writer.__exit__(None, None, None),
    ],
)
def test_a_failed_write_is_said_at_the_next_call(tmp_path, call):
    """The folder is not there: nobody, not even root, can write into it."""
    writer = CheckpointWriter(tmp_path / "gone", "jepa")
    writer.write({"step": 1})
    deadline = time.monotonic() + 60
    while not writer._pending.done():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    message = r"jepa-latest\.pth\.tar cannot be written \(No such file or directory\)"
    with pytest.raises(UserError, match=message):
        call(writer)


def test_what_a_killed_run_left_is_removed_at_the_next_start(tmp_path):
    """Of its own tag only, and nothing that is whole."""
    left = f".jepa-latest.pth.tar.{uuid4().hex}", f".jepa-ep12.pth.tar.{uuid4().hex}"
    others = (
        f".other-latest.pth.tar.{uuid4().hex}",
        ".jepa-latest.pth.tar.backup",
        "jepa-ep2.pth.tar",
    )
    for name in (*left, *others):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, "jepa")
    assert {path.name for path in tmp_path.iterdir()} == set(others)


# ------------------------------------------------------------------------------ of a run's folder
def test_a_folder_without_a_latest_gives_its_newest_epoch_and_says_so(tmp_path, caplog):
    caplog.set_level("INFO")
    save_checkpoint(tmp_path / "jepa-ep50.pth.tar", {})
    assert find_checkpoint(tmp_path).name == "jepa-ep50.pth.tar"
    save_checkpoint(tmp_path / "jepa-ep300.pth.tar", {})
    assert find_checkpoint(tmp_path).name == "jepa-ep300.pth.tar"
    assert "no latest checkpoint: using jepa-ep300.pth.tar, the newest of 2" in caplog.messages[-1]
    assert find_checkpoint(tmp_path, 50).name == "jepa-ep50.pth.tar"
    save_checkpoint(tmp_path / "other-ep300.pth.tar", {})
    with pytest.raises(UserError, match="has 2 checkpoints"):
        find_checkpoint(tmp_path)
    save_checkpoint(tmp_path / "jepa-latest.pth.tar", {})
    assert find_checkpoint(tmp_path).name == "jepa-latest.pth.tar"
