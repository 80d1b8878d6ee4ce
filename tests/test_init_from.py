"""A new run from weights only: whose they may be, and what is said where they do not fit."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from src import train
from src.config import Config, config_from_dict
from src.helper import init_model, load_weights
from src.models.jepa import Networks
from src.utils.checkpoint import NETWORKS, network_state, save_checkpoint
from src.utils.errors import UserError
from tests.conftest import flat_weights, read_latest, tiny_config, tiny_values, train_here

REFERENCE = Path(__file__).parent / "reference"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("logs") / "run"
    train_here(tiny_config(data, folder))
    return folder


def networks_of(config: Config) -> Networks:
    return init_model(config, torch.zeros(config.data.crop_size[0], 5), CPU)


def state_of(networks: Networks) -> dict[str, dict[str, torch.Tensor]]:
    return {part: network_state(getattr(networks, part)) for part in NETWORKS}


def test_only_a_file_of_the_release_may_lack_its_gradients(finished, data, tmp_path):
    state = read_latest(finished)
    del state["predictor"]["module.gradient_pos_embed"]
    save_checkpoint(tmp_path / "cut.pth.tar", state)
    with pytest.raises(
        UserError, match="does not fit this predictor: gradient_pos_embed is missing"
    ):
        load_weights(networks_of(tiny_config(data, tmp_path)), tmp_path / "cut.pth.tar")


@pytest.mark.parametrize("name", ["tiny_mapping", "tiny_origin"])
def test_the_networks_of_the_release_are_loaded(name, data, tmp_path, caplog):
    rois, width, depth, heads, pred_width, pred_depth, components = (
        int(number) for number in np.load(REFERENCE / f"{name}.npz")["config"]
    )
    values = tiny_values(data, tmp_path)
    values["data"]["crop_size"] = [rois, 160]
    values["meta"] |= {"embed_dim": width, "depth": depth, "num_heads": heads}
    values["meta"] |= {"pred_emb_dim": pred_width, "pred_depth": pred_depth}
    values["meta"] |= {"add_w": name.removeprefix("tiny_")}
    config = config_from_dict(values, "reference")
    gradients = torch.randn(rois, components)
    networks = init_model(config, gradients, CPU)
    with caplog.at_level(logging.INFO):
        load_weights(networks, REFERENCE / f"{name}.pth.tar")
    released = torch.load(REFERENCE / f"{name}.pth.tar", weights_only=True)
    for part in NETWORKS:
        assert f"{part} begins with the weights of {part} in" in caplog.text
        own = network_state(getattr(networks, part))
        for key, value in released[part].items():
            assert torch.equal(own[key], value), key
    if name == "tiny_mapping":  # the file has none
        assert torch.equal(networks.encoder.gradient_pos_embed[0], gradients)
    assert "ROI features" not in caplog.text


def test_roi_features_go_with_the_weights_that_read_them(finished, data, tmp_path, caplog):
    networks = networks_of(tiny_config(data, tmp_path))
    load_weights(networks, finished)
    stored = read_latest(finished)["encoder"]["module.gradient_pos_embed"]
    for part in NETWORKS:
        assert torch.equal(getattr(networks, part).gradient_pos_embed, stored)
    assert f"the ROI features are those of {finished}" in caplog.text


def test_a_run_begins_at_step_1_with_the_weights_and_goes_on_by_resume(
    finished, data, tmp_path, monkeypatch
):
    """The folder of a finished run without its latest: ``jepa-ep3`` is the newest."""
    source = tmp_path / "source"
    source.mkdir()
    for epoch in (2, 3):
        (source / f"jepa-ep{epoch}.pth.tar").write_bytes(
            (finished / f"jepa-ep{epoch}.pth.tar").read_bytes()
        )
    begun = []
    real = train.train_step

    def train_step(step, batches, networks, *args):
        begun.append((step, flat_weights(state_of(networks))))
        return real(step, batches, networks, *args)

    monkeypatch.setattr(train, "train_step", train_step)
    folder = tmp_path / "run"
    config = tiny_config(data, folder, f"meta.init_from={source}", "meta.seed=7")
    state = train_here(config)
    assert begun[0][0] == 1
    assert torch.equal(begun[0][1], flat_weights(read_latest(finished)))
    assert state["step"] == 6
    log = (folder / "log.txt").read_text()
    assert "using jepa-ep3.pth.tar, the newest of 2" in log
    assert f"encoder begins with the weights of encoder in {source / 'jepa-ep3.pth.tar'}" in log

    resumed = train_here(config, resume=True)  # the same configuration, continued
    assert torch.equal(flat_weights(resumed), flat_weights(state))


def test_a_first_start_with_resume_is_refused(finished, data, tmp_path):
    config = tiny_config(data, tmp_path / "run", f"meta.init_from={finished}")
    with pytest.raises(UserError, match=r"begins a new run, and .* holds none .* --resume"):
        train_here(config, resume=True)


def test_weights_of_another_shape_are_one_error(finished, data, tmp_path):
    config = tiny_config(data, tmp_path / "run", f"meta.init_from={finished}", "meta.depth=3")
    with pytest.raises(UserError, match=r"does not fit this encoder: blocks\.2\..* is missing"):
        train_here(config)


@pytest.mark.parametrize("key", ["meta.attention_bias=gradient", "meta.roi_value_rank=2"])
def test_weights_without_an_option_of_the_run_are_one_error_that_names_it(
    finished, data, tmp_path, key
):
    config = tiny_config(data, tmp_path, key)
    named = key.split(".")[1].split("=")[0]
    with pytest.raises(UserError, match=rf"does not fit this encoder: .*Check model_name.*{named}"):
        load_weights(networks_of(config), finished / "jepa-latest.pth.tar")


def test_a_file_of_another_kind_is_one_error(data, tmp_path):
    networks = networks_of(tiny_config(data, tmp_path))
    with pytest.raises(UserError, match=r"not a checkpoint of pretraining: .* but model, "):
        load_weights(networks, REFERENCE / "tiny_finetuned.pth")
    with pytest.raises(UserError, match="no checkpoint"):
        load_weights(networks, tmp_path / "nowhere.pth.tar")


def test_an_encoder_alone_is_the_target_encoder_too(data, tmp_path, caplog):
    config = tiny_config(data, tmp_path)
    source = networks_of(tiny_config(data, tmp_path, "meta.seed=3"))
    save_checkpoint(tmp_path / "x.pth.tar", {"target_encoder": network_state(source.encoder)})
    networks, before = networks_of(config), state_of(networks_of(config))
    load_weights(networks, tmp_path / "x.pth.tar")
    assert "has no predictor: it begins with random weights" in caplog.text
    after = state_of(networks)
    for key, value in network_state(source.encoder).items():
        assert torch.equal(after["encoder"][key], value)
        assert torch.equal(after["target_encoder"][key], value)
    for key, value in before["predictor"].items():
        assert torch.equal(after["predictor"][key], value)


def test_such_a_run_is_compared_with_random_weights_and_not_with_those_it_began_with(
    finished, data, tmp_path
):
    begun = train_here(tiny_config(data, tmp_path / "run", f"meta.init_from={finished}"))
    before, monitors = read_latest(finished)["monitors"], begun["monitors"]
    for name in ("signal_r2", "forecast_r2", "people", "clips"):
        assert monitors["untrained"][name] == before["untrained"][name]
        assert monitors["first"][name] == before["last"][name]
    assert monitors["first"]["signal_r2"] != monitors["untrained"]["signal_r2"]
    assert "with the weights it began with" in (tmp_path / "run" / "log.txt").read_text()


def test_a_file_with_another_time_code_is_refused(finished, data, tmp_path):
    """Its buffer would be loaded over the one that the config asks for."""
    networks = networks_of(tiny_config(data, tmp_path, "meta.time_code=few_patches"))
    with pytest.raises(UserError, match=r"another time code.*meta\.time_code"):
        load_weights(networks, finished)
