"""The estimate of a step's memory against what PyTorch keeps."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from src.models.layers import LAYER_NORM, build_blocks, run_blocks, token_extras
from src.models.vision_transformer import VisionTransformer
from src.utils import memory
from src.utils.memory import GIB, Blocks, MemoryEstimate, available_bytes

CPU = torch.device("cpu")


def kept_bytes(forward: Callable[[], Tensor], parameters: list[nn.Parameter]) -> int:
    """Bytes that ``forward`` keeps for the backward pass, each storage once, without parameters."""
    known = {p.untyped_storage().data_ptr() for p in parameters}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, or its address is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("attn_mode", ["sdpa", "normal"])
def test_activations_are_those_that_autograd_keeps(attn_mode, bfloat16):
    blocks = build_blocks(
        dim=48,
        depth=3,
        num_heads=4,
        mlp_ratio=4.0,
        qkv_bias=True,
        norm_layer=LAYER_NORM,
        attn_mode=attn_mode,
    )
    x = torch.randn(2, 150, 48, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        kept = kept_bytes(lambda: run_blocks(blocks, x), list(blocks.parameters()))
    if bfloat16:  # the weights' copies, which do not grow with the batch
        kept -= 2 * sum(p.numel() for p in blocks.parameters() if p.ndim > 1)
    estimate = Blocks.from_modules(blocks, 2, 150, bfloat16=bfloat16, recompute=False)
    assert estimate.activations() == pytest.approx(kept, rel=0.05)
    again = Blocks.from_modules(blocks, 2, 150, bfloat16=bfloat16, recompute=True)
    assert again.activations() < 0.5 * kept


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(
    ("attention_bias", "rank"), [("gradient", 0), ("none", 3), ("gradient", 3)]
)
def test_attention_bias_and_values_of_rois_are_counted(attention_bias, rank, bfloat16):
    network = VisionTransformer(
        (30, 5),
        1,
        embed_dim=48,
        depth=6,
        num_heads=4,
        gradient_pos_embed=torch.randn(1, 30, 9),
        attention_bias=attention_bias,
        roi_value_rank=rank,
        attn_mode="sdpa",
    )
    x = torch.randn(2, 150, 48, requires_grad=True)
    bias = network.attention_bias
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        extras = token_extras(network, network.blocks, (30, 5), None)
        kept = kept_bytes(
            lambda: run_blocks(network.blocks, x, extras=extras), list(network.parameters())
        )
    if bfloat16:  # the weights' copies
        kept -= 2 * sum(p.numel() for p in network.blocks.parameters() if p.ndim > 1)
    estimate = Blocks.from_modules(
        network.blocks, 2, 150, bias=bias, bfloat16=bfloat16, recompute=False
    )
    assert estimate.activations() == pytest.approx(kept, rel=0.05)


def test_a_parameter_that_learns_takes_16_bytes_and_one_that_is_averaged_4():
    estimate = MemoryEstimate.from_modules([nn.Linear(10, 10)], [nn.Linear(10, 10)], 0)
    assert estimate.state == 110 * 16 + 110 * 4
    assert estimate.copy == 110 * 12 + 110 * 4
    frozen = nn.Sequential(nn.Linear(10, 10).requires_grad_(False), nn.Linear(10, 1))
    assert MemoryEstimate.from_modules([frozen], [], 0).state == 11 * 16 + 110 * 4


@pytest.mark.parametrize(("there", "warns"), [(9, True), (11, False), (None, False)])
def test_a_step_that_does_not_fit_is_warned_of(monkeypatch, caplog, there, warns):
    """4 GiB of state, 5 of activations and 1 of copy."""
    monkeypatch.setattr(memory, "available_bytes", lambda *_: there and there * GIB)
    with caplog.at_level(logging.INFO):
        MemoryEstimate(4 * GIB, 5 * GIB, GIB).report(CPU, 1, "Lower the batch.")
    said = f"a step takes about 10.0 GiB of {there}.0 GiB: 4.0 GiB for weights"
    assert (said if there else "a step takes about 10.0 GiB: 4.0 GiB") in caplog.messages[0]
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    expected = "cpu has 9.0 GiB for this process: a step may not fit. Lower the batch."
    assert warnings == ([expected] if warns else [])


@pytest.mark.parametrize(
    ("number", "text"),
    [(3 * GIB, "3.0 GiB"), (GIB // 2, "512 MiB"), (3 * 2**20, "3 MiB"), (1000, "1 MiB")],
)
def test_what_is_small_is_not_said_to_be_nothing(number, text):
    assert memory.amount(number) == text


def test_processes_share_the_memory_of_the_host():
    assert 2**28 < available_bytes(CPU) < 2**50
    assert available_bytes(CPU, 4) == available_bytes(CPU) // 4
