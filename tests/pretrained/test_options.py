"""Attention bias, time code and value maps of a checkpoint, in all that is built from it."""

import json
from dataclasses import replace

import pytest
import torch

from downstream_tasks.models_vit import fine_tuned_model
from src.models.downstream_vit import DownstreamViT
from src.pretrained.file_kinds import read_fine_tuned
from src.pretrained.hub import BrainJEPAHub
from src.pretrained.load import load_pretrained
from tests.conftest import COMPONENTS, FRAMES, ROIS, read_latest
from tests.downstream_tasks.conftest import pretraining_run

OPTIONS = (
    "meta.attention_bias=gradient",
    "meta.bias_components=2",
    "meta.time_code=few_patches",
    "meta.roi_value_rank=3",
    "meta.bias_scales=[2,30]",
    "meta.bias_slopes=[0.2,4]",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return pretraining_run(tmp_path_factory.mktemp("options"), *OPTIONS)[1]


@pytest.fixture
def pretrained(run):
    return load_pretrained(run)


@pytest.fixture
def x():
    return torch.randn(2, 1, ROIS, FRAMES, generator=torch.Generator().manual_seed(0))


def test_a_checkpoint_says_what_it_has(run, pretrained, x):
    spec, bias = pretrained.encoder_spec, pretrained.encoder.attention_bias
    assert (spec.attention_bias, spec.bias_components) == ("gradient", 2)
    assert (spec.time_code, spec.roi_value_rank) == ("few_patches", 3)
    assert pretrained.encoder.blocks[1].attn.roi_values.of_roi.shape == (ROIS, 3)
    assert bias.transform.shape == (2, 2, COMPONENTS)
    stored = read_latest(run)
    assert torch.equal(bias.slope, stored["target_encoder"]["module.attention_bias.slope"])
    assert "module.attention_bias.transform" in stored["predictor"]
    begun = pretrained.untrained(0).attention_bias
    assert not torch.equal(begun.transform, bias.transform)  # it is trained, and averaged
    unused = dict.fromkeys(("bias_components", "bias_scales", "bias_slopes"))
    without = replace(spec, attention_bias="none", **unused)
    plain = without.build(pretrained.gradients)
    weights = pretrained.encoder.state_dict().items()
    plain.load_state_dict({k: v for k, v in weights if not k.startswith("attention_bias")})
    assert (plain(x) - pretrained.encoder(x)).abs().max() > 0.01


def test_its_predictor_has_its_own(run):
    pretrained = load_pretrained(run, with_predictor=True)
    predictor = pretrained.predictor
    stored = read_latest(run)["predictor"]["module.attention_bias.transform"]
    assert torch.equal(predictor.attention_bias.transform, stored)
    begun = pretrained.predictor_spec.build(pretrained.gradients).attention_bias
    assert begun.slope.tolist() == pytest.approx([0.2, 4])
    assert begun.transform[1, 0, 0].item() == pytest.approx(30**0.5)


def test_copies_have_them(pretrained, x):
    copy = pretrained.trainable_copy(gradient_checkpointing=True)
    assert torch.equal(copy.eval()(x), pretrained.encoder(x))
    copy(x).sum().backward()
    assert copy.attention_bias.transform.grad.abs().sum() > 0
    begun = pretrained.untrained(3).attention_bias
    assert begun.slope.tolist() == pytest.approx([0.2, 4])
    assert begun.transform[1, 0, 0].item() == pytest.approx(30**0.5)


def test_an_export_has_them(pretrained, x, tmp_path):
    BrainJEPAHub.from_encoder(pretrained).save_pretrained(tmp_path)
    assert (
        json.loads((tmp_path / "config.json").read_text())["encoder_spec"]["bias_components"] == 2
    )
    assert torch.equal(BrainJEPAHub.from_pretrained(tmp_path)(x), pretrained.encoder(x))
    assert torch.equal(load_pretrained(tmp_path).encoder(x), pretrained.encoder(x))


def test_a_fine_tuned_file_has_them(pretrained, x, tmp_path):
    network = DownstreamViT(pretrained.trainable_copy(), 3)
    state = {"model": network.state_dict(), "provenance": pretrained.provenance(), "epoch": 1}
    assert read_fine_tuned(state, tmp_path).spec["attention_bias"] == "gradient"
    torch.save(state, tmp_path / "fine_tuned.pth")
    again = fine_tuned_model(load_pretrained(tmp_path / "fine_tuned.pth"))
    assert torch.equal(again(x), network.eval()(x))
    assert "encoder.attention_bias.transform" in network.no_weight_decay()
