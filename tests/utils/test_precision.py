"""Numbers of the training step: bfloat16, recomputation, compilation, and no waiting for them."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from src import train
from src.config import Config
from src.datasets.micro_batches import MicroBatchSampler, NumberedSamples
from src.helper import init_collator, init_dataset, init_model, init_opt, init_roi_features
from src.utils import precision
from src.utils.distributed import launch
from src.utils.step_buffer import StepRecord
from tests.conftest import (
    flat_weights,
    forked_workers,
    losses,
    read_latest,
    tiny_config,
    train_here,
)

CPU = torch.device("cpu")
# What makes the host wait for the device: a value, or a shape that depends on values.
SYNCHRONISING = (
    *("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal"),
    *("aten.is_nonzero", "aten._unique2", "aten.bincount", "aten.unique_consecutive"),
)

OPTIONS = (
    *("meta.objective=hybrid", "meta.targets=centered", "meta.regularizer=vicreg"),
    *("meta.attention_bias=gradient", "meta.bias_components=2", "meta.roi_value_rank=2"),
    *("meta.mask_mode=mixed", "data.global_signal=remove"),
)


@pytest.fixture(scope="module")
def float32(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("logs") / "float32"
    train_here(tiny_config(data, folder))
    return folder


# ------------------------------------------------------------------------------------- bfloat16
@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [(False, False, False), (True, False, True), (False, True, True)],
)
def test_a_cpu_has_bfloat16_if_one_of_its_units_has(monkeypatch, avx512, amx, expected):
    units = {"avx512_bf16": avx512, "amx_bf16": amx, "avx512_f": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert precision.has_bfloat16(CPU) is expected


def test_emulated_bfloat16_of_a_gpu_does_not_count(monkeypatch):
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert not precision.has_bfloat16(torch.device("cuda", 0))


def test_autocast_computes_in_bfloat16_only_where_it_is_asked_for_and_there(monkeypatch, caplog):
    def product(use_bfloat16: bool) -> torch.dtype:
        context = precision.autocast(CPU, use_bfloat16)
        for _ in range(2):  # one factory serves all steps
            with context():
                out = torch.ones(2, 2) @ torch.ones(2, 2)
        return out.dtype

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    assert product(True) == torch.bfloat16
    assert product(False) == torch.float32
    assert not caplog.records
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    assert product(True) == torch.float32
    assert caplog.messages == ["cpu has no bfloat16 units: computing in float32 instead"]


def test_bfloat16_trains_like_float32_and_keeps_float32_weights(
    data, tmp_path, monkeypatch, float32
):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    state = train_here(tiny_config(data, tmp_path / "run", "meta.use_bfloat16=true"))
    exact, rounded = losses(float32), losses(tmp_path / "run")
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)
    assert flat_weights(state).isfinite().all()
    stored = [state["encoder"], state["predictor"], state["target_encoder"]]
    stored += state["opt"]["state"].values()
    assert {v.dtype for part in stored for v in part.values()} == {torch.float32}


def test_without_bfloat16_units_the_same_config_gives_the_float32_run(
    data, tmp_path, monkeypatch, float32
):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    state = train_here(tiny_config(data, tmp_path / "run", "meta.use_bfloat16=true"))
    assert torch.equal(flat_weights(state), flat_weights(read_latest(float32)))
    assert "computing in float32 instead" in (tmp_path / "run" / "log.txt").read_text()


# --------------------------------------------------------------------- recomputation, compilation
@pytest.mark.parametrize("accumulation", [1, 2])
def test_recomputing_activations_in_two_processes_changes_no_loss(data, tmp_path, accumulation):
    """DistributedDataParallel's hooks see each gradient once; block sizes differ by step."""
    one = tmp_path / "one"
    short = ("optimization.epochs=2", f"meta.accumulation_steps={accumulation}")
    train_here(tiny_config(data, one, "data.batch_size=4", *short))
    two = tmp_path / "two"
    config = tiny_config(data, two, "meta.gradient_checkpointing=true", *short)
    with forked_workers():
        launch(train.main, [CPU, CPU], config)
    assert read_latest(two)["world_size"] == 2
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), OPTIONS], ids=["published", "options"])
def test_compiled_training_equals_eager(data, tmp_path, options):
    eager = train_here(tiny_config(data, tmp_path / "eager", *options))
    state = train_here(tiny_config(data, tmp_path / "run", "meta.compile=true", *options))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "eager"), rel=1e-4)
    assert state["encoder"].keys() == eager["encoder"].keys()
    assert (flat_weights(state) - flat_weights(eager)).abs().mean() < 1e-5


# ------------------------------------------------------------------------ no host synchronisation
class Operators(TorchDispatchMode):
    """Which operators ran, and what was copied to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))

    @property
    def waits(self) -> set[str]:
        return set(self.names) & set(SYNCHRONISING)


def one_step(config: Config, device: str) -> Callable[[], StepRecord]:
    """The second optimizer step of ``config`` on ``device``, to be taken when called.

    The first has made the optimizer's state, as the first of every run does.
    """
    dataset = init_dataset(config, "train", config.clip_input)
    sampler = MicroBatchSampler(
        len(dataset), batch_size=2, accumulation=config.meta.accumulation_steps, epochs=3
    )
    collator = init_collator(config, seed=0)
    batches = iter(DataLoader(NumberedSamples(dataset), batch_sampler=sampler, collate_fn=collator))
    networks = init_model(config, init_roi_features(config, dataset, None), torch.device(device))
    optimizer, schedule = init_opt(networks, config, 2)

    def step(number: int) -> StepRecord:
        accumulation = config.meta.accumulation_steps
        return train.train_step(
            number, batches, networks, optimizer, schedule, accumulation, nullcontext
        )

    step(1)
    return partial(step, 2)


@pytest.mark.parametrize("options", [(), OPTIONS], ids=["published", "options"])
def test_a_step_asks_the_device_for_no_value(data, tmp_path, options):
    step = one_step(tiny_config(data, tmp_path, *options), "cpu")
    with Operators() as operators:
        record = step()
    assert "aten._fused_adamw_" in operators.names  # the mode sees the step
    assert not operators.waits
    with Operators() as operators:
        record.losses[0].item()
    assert operators.waits == {"aten._local_scalar_dense"}


@pytest.mark.parametrize("options", [(), OPTIONS], ids=["published", "options"])
@pytest.mark.parametrize("recompute", ["false", "true"])
def test_a_step_reads_nothing_back_from_its_device(data, tmp_path, monkeypatch, recompute, options):
    """On ``meta``, whose tensors have no values, whatever reads one raises."""
    real = torch.optim.AdamW
    # PyTorch has neither a fused AdamW nor autocast for this device.
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda groups, **kw: real(groups, **kw | {"fused": False})
    )
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    config = tiny_config(data, tmp_path, f"meta.gradient_checkpointing={recompute}", *options)
    record = one_step(config, "meta")()
    assert [loss.device.type for loss in (*record.losses, record.grad_norm)] == ["meta"] * 3
    assert all(0 <= row < 12 for micro in record.rows for row in micro)
    for read in (torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read(record.losses[0])
