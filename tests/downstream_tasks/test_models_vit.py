"""The fine-tuned network: the release's numbers and names, layer-wise lr decay and drop path."""

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from timm.optim import param_groups_layer_decay

from downstream_tasks.models_vit import fine_tuned_model
from src.models.downstream_vit import DownstreamViT
from src.models.encoder_spec import EncoderSpec
from src.pretrained.load import load_pretrained
from src.utils.checkpoint import load_checkpoint
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import reference

SPEC = EncoderSpec((4, 32), 16, 24, 5, 2, "mapping")
DECAY = 0.75


def make(linear_probe: bool = False, **encoder: object) -> DownstreamViT:
    torch.manual_seed(0)
    return DownstreamViT(SPEC.build(torch.randn(4, 3), **encoder), 2, linear_probe=linear_probe)


@pytest.mark.parametrize("attn_mode", ["normal", "sdpa"])
def test_release_fine_tuned_checkpoint(tmp_path, attn_mode):
    path, arrays, flags = reference("tiny_finetuned", tmp_path)
    pretrained = load_pretrained(path, attn_mode=attn_mode, **flags)
    assert pretrained.kind == "fine_tuned_release"
    logits = fine_tuned_model(pretrained)(torch.from_numpy(arrays["x"]))
    assert np.abs(logits.numpy() - arrays["logits"]).max() <= 2e-5


def test_names_are_those_of_the_release(tmp_path):
    path, _, flags = reference("tiny_finetuned", tmp_path)
    model = fine_tuned_model(load_pretrained(path, **flags))
    own, released = model.state_dict().keys(), load_checkpoint(path)["model"].keys()
    assert own - released == {"encoder.gradient_pos_embed"}
    assert not released - own


def test_a_pretraining_checkpoint_has_no_head(tmp_path):
    path, _, flags = reference("tiny_mapping", tmp_path)
    with pytest.raises(UserError, match="not a fine-tuned checkpoint"):
        fine_tuned_model(load_pretrained(path, **flags))


def test_every_layer_has_its_learning_rate():
    model = make()
    groups = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=DECAY)
    number = {id(p): name for name, p in model.named_parameters()}
    scale = {number[id(p)]: g["lr_scale"] for g in groups for p in g["params"]}
    decay = {number[id(p)]: g["weight_decay"] for g in groups for p in g["params"]}
    assert scale.keys() == set(number.values())  # every parameter is in one group
    last = SPEC.depth + 1
    for name, value in scale.items():
        if name.startswith(("encoder.patch_embed", "encoder.pos_embed_proj")):
            layer = 0
        elif name.startswith("encoder.blocks."):
            layer = int(name.split(".")[2]) + 1
        else:
            layer = last
        assert value == pytest.approx(DECAY ** (last - layer)), name
    projection = "encoder.pos_embed_proj.predictor_pos_embed_proj.weight"
    assert decay[projection] == decay["head.bias"] == decay["encoder.norm.weight"] == 0
    assert decay["head.weight"] == decay["encoder.blocks.0.mlp.fc1.weight"] == 0.05


def test_drop_path_is_active_in_training_and_rises_with_depth():
    model = make(drop_path_rate=0.4)
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    # The first block drops nothing; the others twice each, up to the rate asked for.
    assert rates == pytest.approx(np.repeat([0.1, 0.2, 0.3, 0.4], 2))
    x = torch.randn(1, 1, 4, 32)
    torch.nn.init.normal_(model.head.weight)
    outputs = torch.stack([model.train()(x) for _ in range(8)])
    assert outputs.std(dim=0).min() > 1e-4
    model.eval()
    assert torch.equal(model(x), model(x))


def test_checkpointing_changes_no_gradient():
    gradients = []
    for gradient_checkpointing in (False, True):
        model = make(gradient_checkpointing=gradient_checkpointing)
        torch.nn.init.ones_(model.head.weight)
        model(torch.ones(2, 1, 4, 32)).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_linear_probe_trains_only_its_head():
    model = make(linear_probe=True, drop_path_rate=0.5).train()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        "head.1.weight",
        "head.1.bias",
    }
    norm = model.head[0]
    assert norm.training
    assert not norm.affine
    assert norm.eps == 1e-6
    assert not model.encoder.training
    x = torch.randn(3, 1, 4, 32)
    assert torch.equal(model.forward_features(x), model.forward_features(x))


def test_pools_all_tokens():
    model = make().eval()
    x = torch.randn(2, 1, 4, 32)
    expected = model.fc_norm(model.encoder(x).mean(dim=1))
    torch.testing.assert_close(model.forward_features(x), expected)
    assert model.n_outputs == 2


def test_pools_one_patch_of_every_roi():
    torch.manual_seed(0)
    model = DownstreamViT(SPEC.build(torch.randn(4, 3)), 2, patch=1).eval()
    x = torch.randn(2, 1, 4, 32)
    tokens = model.encoder(x)[:, [1, 3, 5, 7]]  # ROI-major: r * 2 + 1
    torch.testing.assert_close(model.forward_features(x), model.fc_norm(tokens.mean(dim=1)))
