"""Fine-tuning by low-rank adapters: what is trained, stored, merged and refused."""

import copy
import os
import signal
import sys

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from downstream_tasks import adapters, engine_finetune, main_finetune
from downstream_tasks.engine_finetune import make_optimizer
from downstream_tasks.finetune_state import BEST, LATEST, state_folder
from downstream_tasks.models_vit import fine_tuned_model
from src.models.downstream_vit import DownstreamViT
from src.pretrained.load import load_pretrained
from src.utils.checkpoint import load_checkpoint
from src.utils.errors import UserError
from tests.conftest import FRAMES, ROIS
from tests.downstream_tasks.conftest import CPU, stored_weights

LORA = {"lora_rank": 2, "lora_alpha": 8.0, "epochs": 2, "blr": 1.0}
PLAIN = {"baselines": ["majority"], "controls": "none"}


@pytest.fixture
def network(rehearsal, make_config):
    """A network with adapters whose second halves are no longer zero, and its settings."""
    ft = make_config(fine_tune=LORA).fine_tune
    torch.manual_seed(0)
    model = DownstreamViT(load_pretrained(rehearsal.checkpoint).trainable_copy(), 2)
    before = copy.deepcopy(model)
    adapters.add_adapters(model, ft)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, before, ft


def clip() -> torch.Tensor:
    return torch.randn(2, 1, ROIS, FRAMES, generator=torch.Generator().manual_seed(1))


def test_adapters_begin_as_the_network_itself(rehearsal, make_config):
    model = DownstreamViT(load_pretrained(rehearsal.checkpoint).trainable_copy(), 2).eval()
    expected = model(clip())
    adapters.add_adapters(model, make_config(fine_tune=LORA).fine_tune)
    torch.testing.assert_close(model.eval()(clip()), expected)


def test_merged_network_is_the_network_with_adapters(network):
    """By the formula ``W + alpha / rank * B A``, and by what they give."""
    model, before, _ = network
    merged = copy.deepcopy(before)
    merged.load_state_dict(adapters.merged_state(model), strict=True)
    torch.testing.assert_close(merged.eval()(clip()), model.eval()(clip()), rtol=1e-4, atol=1e-5)
    parts = model.state_dict()
    for number, name in ((0, "qkv"), (1, "proj")):
        where = f"encoder.blocks.{number}.attn.{name}"
        a, b = (parts[f"{where}.lora_{half}.default.weight"] for half in "AB")
        weight = before.state_dict()[f"{where}.weight"] + 8.0 / 2 * b @ a
        torch.testing.assert_close(merged.state_dict()[f"{where}.weight"], weight)


def test_adapters_and_head_alone_are_trained(network):
    model, _, ft = network
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    depth = len(model.encoder.blocks)
    expected = {
        f"encoder.blocks.{i}.attn.{layer}.lora_{half}.default.weight"
        for i in range(depth)
        for layer in ("qkv", "proj")
        for half in "AB"
    }
    assert trained == expected | {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    # Layer decay: adapters of block i have the rate of block i, as its weights would.
    scale = {
        id(p): group["lr_scale"]
        for group in make_optimizer(model, ft).param_groups
        for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            block = int(name.split(".")[2]) if "blocks" in name else depth
            assert scale[id(parameter)] == pytest.approx(0.75 ** (depth - block)), name
    assert len(scale) == len(trained)


def test_drop_path_is_that_of_the_config(make_config, drop_rates):
    ft = LORA | {"epochs": 1, "drop_path": 0.3}
    main_finetune.run(make_config(fine_tune=ft, evaluation=PLAIN), [CPU])
    assert drop_rates[0] == [0.0, 0.3]


def test_stored_files_are_plain_and_adapters_stand_beside_them(make_config, rehearsal):
    config = make_config(fine_tune=LORA, evaluation=PLAIN)
    results = main_finetune.run(config, [CPU])
    folder = state_folder(config, "seed0")
    best = load_pretrained(folder / BEST)
    before = load_pretrained(rehearsal.checkpoint).encoder.state_dict()
    changed = {
        name
        for name, value in best.encoder.state_dict().items()
        if not torch.equal(value, before[name])
    }
    depth = best.encoder_spec.depth
    assert changed == {
        f"blocks.{i}.attn.{layer}.weight" for i in range(depth) for layer in ("qkv", "proj")
    }
    # What PEFT itself reads: the frozen network and the small file make the same network.
    small = load_file(folder / "adapters" / "adapter_model.safetensors")
    width = best.encoder_spec.embed_dim
    per_block = 2 * (width + 3 * width) + 2 * (width + width)  # rank 2: qkv and proj
    n_trained = depth * per_block + 2 * width + 2 * width + 2
    assert sum(value.numel() for value in small.values()) == n_trained
    frozen = DownstreamViT(load_pretrained(rehearsal.checkpoint).trainable_copy(), 2)
    read = PeftModel.from_pretrained(frozen, str(folder / "adapters")).eval()
    expected = fine_tuned_model(best)(clip())
    torch.testing.assert_close(read(clip()), expected, rtol=1e-4, atol=1e-5)
    assert results.settings["trained"] == "the head and adapters of rank 2 (alpha 8)"
    # The table says how much was trained; the same by --eval.
    again = main_finetune.run(config, [CPU], evaluate=True)
    for row in (results.rows[0], again.rows[0]):
        assert row.trained_parameters == n_trained
        assert row.mean == results.rows[0].mean


def test_number_of_trained_parameters_of_full_fine_tuning(make_config):
    config = make_config(fine_tune={"epochs": 1}, evaluation=PLAIN)
    row = main_finetune.run(config, [CPU]).rows[0]
    model = fine_tuned_model(load_pretrained(state_folder(config, "seed0") / BEST))
    buffers = {name for name, _ in model.named_buffers()}
    sizes = [value.numel() for name, value in model.state_dict().items() if name not in buffers]
    assert row.trained_parameters == sum(sizes)
    table = (config.output_dir / "results.md").read_text()
    assert f"{sum(sizes):,}" in table


def test_resume_is_bit_for_bit(make_config, monkeypatch):
    task = {"fine_tune": LORA, "evaluation": PLAIN}
    whole, parts = make_config("whole", **task), make_config("parts", **task)
    expected = main_finetune.run(whole, [CPU])
    real = engine_finetune.train_step

    def train_step(step, *args):
        record = real(step, *args)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return record

    with monkeypatch.context() as patch:
        patch.setattr(engine_finetune, "train_step", train_step)
        with pytest.raises(SystemExit):
            main_finetune.run(parts, [CPU])
    assert main_finetune.run(parts, [CPU], resume=True).rows == expected.rows
    for name in (LATEST, BEST):
        assert torch.equal(stored_weights(whole, name=name), stored_weights(parts, name=name))
    states = [load_checkpoint(state_folder(c, "seed0") / LATEST) for c in (whole, parts)]
    for name, value in states[0]["adapters"].items():
        assert torch.equal(value, states[1]["adapters"][name]), name
    smaller = make_config("parts", fine_tune=LORA | {"lora_rank": 1}, evaluation=PLAIN)
    with pytest.raises(UserError, match=r"fine_tune\.lora_rank is 1, was 2"):
        main_finetune.run(smaller, [CPU], resume=True)


def test_resume_refuses_adapters_of_other_weights(make_config, rehearsal, tmp_path):
    checkpoint = tmp_path / "jepa-latest.pth.tar"
    source = rehearsal.checkpoint / "jepa-latest.pth.tar"
    checkpoint.write_bytes(source.read_bytes())
    config = make_config(fine_tune=LORA, evaluation=PLAIN, model={"load_path": str(checkpoint)})
    main_finetune.run(config, [CPU])
    state = torch.load(source, weights_only=True)
    for value in state["target_encoder"].values():
        if value.is_floating_point():
            value.mul_(1.01)
    torch.save(state, checkpoint)
    with pytest.raises(UserError, match=r"adapters .* other weights"):
        main_finetune.run(config, [CPU], resume=True)


def test_controls_have_adapters_too_and_two_devices_train_them_alike(make_config):
    evaluation = {"baselines": ["random_weights"]}
    ft = LORA | {"drop_path": 0.0, "epochs": 1}
    heads = {"C": [0.1], "folds": 2}
    at_once = make_config("a", fine_tune=ft, evaluation=evaluation, heads=heads)
    divided = make_config("b", fine_tune=ft | {"batch_size": 4}, evaluation=evaluation, heads=heads)
    main_finetune.run(at_once, [CPU])
    main_finetune.run(divided, [CPU, CPU])
    for control in ("model", "random_weights"):
        assert (state_folder(at_once, "seed0", control) / "adapters").is_dir()
        here, there = (stored_weights(config, control=control) for config in (at_once, divided))
        torch.testing.assert_close(here, there, rtol=0, atol=5e-5)


def test_gradient_checkpointing_changes_no_adapter(make_config):
    ft = LORA | {"epochs": 1, "drop_path": 0.0}
    plain = make_config("a", fine_tune=ft, evaluation=PLAIN)
    saving = make_config("b", fine_tune=ft | {"gradient_checkpointing": True}, evaluation=PLAIN)
    for config in (plain, saving):
        main_finetune.run(config, [CPU])
    torch.testing.assert_close(stored_weights(plain), stored_weights(saving), rtol=0, atol=1e-6)


def test_without_the_package_it_is_said_before_anything_is_read(make_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"fine_tune\.lora_rank.*pip install peft"):
        main_finetune.run(make_config(fine_tune=LORA, data={"data_path": "nowhere"}), [CPU])
    assert np.isfinite(
        main_finetune.run(make_config("full", fine_tune={"epochs": 1}, evaluation=PLAIN), [CPU])
        .rows[0]
        .mean["accuracy"]
    )


@pytest.mark.parametrize(("key", "value"), [("lora_rank", -1), ("lora_alpha", 0.0)])
def test_limits(make_config, key, value):
    with pytest.raises(UserError, match=rf"fine_tune\.{key}"):
        make_config(fine_tune={key: value})
