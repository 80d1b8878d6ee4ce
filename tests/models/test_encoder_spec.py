"""What an encoder is built of: from a config, to a file and back."""

import json

import pytest
import torch

from src.models.encoder_spec import EncoderSpec
from src.models.vision_transformer import SIZES
from tests.conftest import tiny_config


def test_a_config_says_all_of_it(tmp_path):
    overrides = ("meta.patch_embed_std=0.2", "mask.patch_size=8", "meta.add_w=anatomical")
    options = (
        "attention_bias=gradient",
        "bias_components=2",
        "time_code=few_patches",
        "roi_value_rank=3",
        "bias_scales=[1,9]",
        "bias_slopes=[2,0]",
    )
    overrides += tuple(f"meta.{option}" for option in options)
    config = tiny_config(tmp_path, tmp_path, *overrides)
    assert config.encoder_spec == EncoderSpec(
        (26, 64),
        8,
        24,
        2,
        2,
        "anatomical",
        "fan_in",
        0.2,
        "gradient",
        2,
        "few_patches",
        3,
        bias_scales=(1.0, 9.0),
        bias_slopes=(2.0, 0.0),
    )
    assert config.encoder_spec.grid == config.grid == (26, 8)


def test_there_and_back_through_json():
    spec = EncoderSpec((6, 32), 8, 24, 2, 3, "mapping", "fan_in", 0.3, bias_scales=(1.0, 2.0, 9.0))
    assert EncoderSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("name", SIZES)
def test_sizes_have_their_names(name):
    spec = EncoderSpec((6, 32), 8, **SIZES[name], add_w="origin")
    assert spec.model_name == name
    assert EncoderSpec((6, 32), 8, 20, 1, 1, "origin").model_name is None


def test_the_encoder_is_as_said():
    spec = EncoderSpec((6, 32), 8, 192, 2, 3, "mapping", "fan_in", 0.3)
    gradients = torch.randn(6, 4)
    torch.manual_seed(0)
    encoder = spec.build(
        gradients, attn_mode="normal", drop_path_rate=0.5, gradient_checkpointing=True
    )
    assert encoder.num_patches_2d == spec.grid == (6, 4)
    assert (encoder.embed_dim, len(encoder.blocks), encoder.num_heads) == (192, 2, 3)
    assert torch.equal(encoder.gradient_pos_embed, gradients[None])
    assert encoder.patch_embed.proj.weight.std().item() == pytest.approx(0.3, rel=0.1)
    assert encoder.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(192**-0.5, rel=0.1)
    assert not encoder.blocks[0].attn.fused_attn
    assert encoder.blocks[1].drop_path1.drop_prob == 0.5
    assert encoder.gradient_checkpointing
