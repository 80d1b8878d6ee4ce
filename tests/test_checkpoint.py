"""Checkpoint files: whole or not there, strict, and never executed."""

import argparse
import os
import pickle

import pytest
import torch

from src.utils.checkpoint import (
    checkpoint_path,
    load_checkpoint,
    load_network,
    network_state,
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
    with pytest.raises(UserError, match=r"x\.pth\.tar cannot be read"):
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
    for broken, message in (
        ({"module.weight": state["module.weight"]}, "bias is missing"),
        ({**state, "module.extra": torch.zeros(1)}, "extra is not in the model"),
        ({**state, "module.bias": torch.zeros(5)}, r"bias is \(5,\), the model needs \(2,\)"),
    ):
        with pytest.raises(UserError, match=message):
            load_network(torch.nn.Linear(3, 2), broken, "x.pth", "encoder")
