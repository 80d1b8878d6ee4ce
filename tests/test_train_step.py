"""One optimizer step against the same step written out by hand, in float64 on tiny networks."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from src.helper import init_model, init_opt
from src.models.jepa import Networks
from src.train import train_step
from src.utils.distributed import Ranks, launch
from src.utils.precision import autocast
from src.utils.step_buffer import StepRecord
from tests.conftest import (
    COMPONENTS,
    FRAMES,
    ROIS,
    forked_workers,
    tiny_config,
)

CPU = torch.device("cpu")
FLOAT32 = autocast(CPU, use_bfloat16=False)
BATCH = 4  # clips of a micro-step, over all processes
ACCUMULATIONS = (1, 2, 4)
STEPS_PER_EPOCH, EPOCHS, WARMUP = 2, 4, 2  # optimizer steps, epochs, epochs
TOTAL = STEPS_PER_EPOCH * EPOCHS
OVERRIDES = (
    f"optimization.epochs={EPOCHS}",
    f"optimization.warmup={WARMUP}",
    "optimization.start_lr=0.001",
    "optimization.lr=0.005",
    "optimization.final_lr=0.0002",
    "optimization.weight_decay=0.1",
    "optimization.final_weight_decay=0.5",
    "optimization.ema=[0.9,1.0]",
)


class Training:
    """Networks, optimizer and schedule as pretraining makes them, in float64.

    Attributes:
        gradients: what the optimizer was given in its last step, by the parameter's name.
    """

    def __init__(self, ranks: Ranks, accumulation: int) -> None:
        config = tiny_config(Path("none"), Path("none"), *OVERRIDES)
        generator = torch.Generator().manual_seed(1)
        features = torch.randn(ROIS, COMPONENTS, generator=generator)
        self.networks: Networks = init_model(config, features, CPU)
        networks = self.networks
        for network in (networks.encoder, networks.predictor, networks.target_encoder):
            network.double()
        networks.distribute(ranks, accumulation)
        self.accumulation = accumulation
        self.optimizer, self.schedule = init_opt(networks, config, STEPS_PER_EPOCH)
        self.optimizer.register_step_pre_hook(self._keep_gradients)
        self.gradients: dict[str, Tensor] = {}

    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything that is trained, by name."""
        parts = {"encoder": self.networks.encoder, "predictor": self.networks.predictor}
        return {
            f"{part}.{name}": p for part, net in parts.items() for name, p in net.named_parameters()
        }

    def _keep_gradients(self, *_: object) -> None:
        self.gradients = {name: p.grad.clone() for name, p in self.parameters().items()}

    def step(self, step: int, clips: slice = slice(None)) -> StepRecord:
        """Take optimizer step ``step`` on its micro-batches, or on ``clips`` of each of them."""
        batches = iter(micro_batches(step, self.accumulation, clips))
        record = train_step(
            step,
            batches,
            self.networks,
            self.optimizer,
            self.schedule,
            self.accumulation,
            FLOAT32,
        )
        assert next(batches, None) is None
        return record


def micro_batches(step: int, accumulation: int, clips: slice = slice(None)) -> list[tuple]:
    """What the loader gives for a step: clips ``[B, 1, R, T]`` and masks ``[B, K]``."""
    generator = torch.Generator().manual_seed(100 * step)
    tokens = ROIS * FRAMES // 16
    batches = []
    for micro in range(accumulation):
        x = torch.randn(BATCH, 1, ROIS, FRAMES, generator=generator, dtype=torch.float64)
        order = torch.rand(BATCH, tokens, generator=generator).argsort(dim=1)
        row = torch.arange(BATCH) + BATCH * micro
        batch = {"fmri": x[clips], "row": row[clips]}
        batches.append((batch, [order[clips, :40]], [order[clips, 40 : 60 + micro]]))
    return batches


# --- by hand -------------------------------------------------------------------------------------


def losses_by_hand(networks: Networks, batches: list[tuple]) -> Iterator[Tensor]:
    """Method 5: smooth L1 of the prediction from the LayerNorm of what the target encoder says."""
    for batch, (context,), (target,) in batches:
        with torch.no_grad():
            said = networks.target_encoder(batch["fmri"])
            centred = said - said.mean(dim=-1, keepdim=True)
            variance = centred.square().mean(dim=-1, keepdim=True)
            said = centred / (variance + 1e-5).sqrt()
            hidden = torch.stack([said[i, tokens] for i, tokens in enumerate(target)])
        seen = networks.encoder(batch["fmri"], context)
        error = (networks.predictor(seen, context, target) - hidden).abs()
        yield torch.where(error < 1, error.square() / 2, error - 0.5).mean()


def schedule_by_hand(step: int) -> tuple[float, float, float]:
    """Learning rate, weight decay, momentum of method 5 and 7 with ``OVERRIDES``."""
    warm = STEPS_PER_EPOCH * WARMUP
    if step <= warm:
        lr = 0.001 + 0.004 * step / warm
    else:
        down = (step - warm) / (TOTAL - warm)
        lr = 0.0002 + (0.005 - 0.0002) * (1 + math.cos(math.pi * down)) / 2
    decay = 0.5 + (0.1 - 0.5) * (1 + math.cos(math.pi * step / TOTAL)) / 2
    return lr, decay, 0.9 + 0.1 * (step - 1) / (TOTAL - 1)


def is_decayed(name: str) -> bool:
    """Method 7: biases and norms are not decayed."""
    return not name.endswith(".bias") and "norm" not in name


def test_weights_are_those_of_the_seed_and_the_target_encoder_starts_as_the_encoder():
    config = tiny_config(Path("none"), Path("none"))
    features = torch.randn(ROIS, COMPONENTS)
    first, again = (init_model(config, features, CPU) for _ in range(2))
    config.meta.seed = 1
    other = init_model(config, features, CPU)
    name = "patch_embed.proj.weight"
    weight, same, different = (
        networks.encoder.state_dict()[name] for networks in (first, again, other)
    )
    assert torch.equal(weight, same)
    assert not torch.equal(weight, different)
    for name, value in first.encoder.state_dict().items():
        assert torch.equal(value, first.target_encoder.state_dict()[name]), name
    assert not any(p.requires_grad for p in first.target_encoder.parameters())


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
def test_every_step_of_a_run_is_the_step_by_hand(accumulation):
    """From warm-up over the peak to the end of the schedule."""
    training = Training(Ranks(CPU), accumulation)
    networks, parameters = training.networks, training.parameters()
    first = {name: torch.zeros_like(p) for name, p in parameters.items()}
    second = copy.deepcopy(first)
    assert {is_decayed(name) for name in parameters} == {True, False}

    for step in range(1, TOTAL + 1):
        lr, decay, momentum = schedule_by_hand(step)
        before = {name: p.detach().clone() for name, p in parameters.items()}
        target_before = copy.deepcopy(networks.target_encoder.state_dict())
        losses = [*losses_by_hand(networks, micro_batches(step, accumulation))]
        expected = torch.autograd.grad(sum(losses) / accumulation, [*parameters.values()])

        record = training.step(step)

        # The loss of each micro-step, undivided, and what the host knows.
        torch.testing.assert_close(torch.stack(record.losses), torch.stack(losses).detach())
        assert record.rows == [[*range(BATCH * m, BATCH * (m + 1))] for m in range(accumulation)]
        assert record.scalars["lr"] == pytest.approx(lr, rel=1e-12)
        assert record.scalars["weight_decay"] == pytest.approx(decay, rel=1e-12)
        assert record.scalars["momentum"] == pytest.approx(momentum, rel=1e-12)

        # Gradients, those of this step alone.
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(
                training.gradients[name], gradient, rtol=1e-9, atol=1e-14, msg=name
            )
        norm = math.sqrt(sum(gradient.square().sum().item() for gradient in expected))
        assert record.grad_norm.item() == pytest.approx(norm, rel=1e-9)

        # AdamW. From the gradients that it was given: it divides by their size, and that of a
        # weight which moves nothing is rounding.
        for name, parameter in parameters.items():
            gradient = training.gradients[name]
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient.square()
            size = (second[name] / (1 - 0.999**step)).sqrt() + 1e-8
            moved = lr * first[name] / (1 - 0.9**step) / size
            kept = before[name] * (1 - lr * decay if is_decayed(name) else 1)
            torch.testing.assert_close(
                parameter.detach(), kept - moved, rtol=1e-9, atol=1e-12, msg=name
            )

        # The target encoder, from the weights after the update.
        for name, value in networks.target_encoder.named_parameters():
            after = parameters[f"encoder.{name}"].detach()
            average = momentum * target_before[name] + (1 - momentum) * after
            torch.testing.assert_close(value, average, rtol=1e-12, atol=1e-14, msg=name)

    assert momentum == 1.0
    assert lr == pytest.approx(0.0002)


# --- two processes -------------------------------------------------------------------------------


def take_steps(ranks: Ranks, folder: Path) -> None:
    """In one process of ``ranks``: two steps at each accumulation, and what they did, saved."""
    share = BATCH // ranks.world_size
    clips = slice(ranks.rank * share, (ranks.rank + 1) * share)
    done = {}
    for accumulation in ACCUMULATIONS:
        training = Training(ranks, accumulation)
        training.step(1, clips)  # in which DistributedDataParallel may record its graph
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            record = training.step(2, clips)
        done[accumulation] = {
            "gradients": training.gradients,
            "grad_norm": record.grad_norm,
            "losses": torch.stack(record.losses),
            "all_reduces": sum(event.name == "c10d::allreduce_" for event in profiler.events()),
        }
    torch.save(done, folder / f"rank{ranks.rank}of{ranks.world_size}.pt")


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory) -> tuple[dict, list[dict]]:
    """What one process did, and what each of two did with half of the clips."""
    folder = tmp_path_factory.mktemp("steps")
    take_steps(Ranks(CPU), folder)
    with forked_workers():
        launch(take_steps, [CPU, CPU], folder)
    one, *two = (
        torch.load(folder / f"rank{name}.pt", weights_only=True)
        for name in ("0of1", "0of2", "1of2")
    )
    return one, two


@pytest.mark.processes
def test_two_processes_have_the_gradients_of_one(one_and_two):
    one, two = one_and_two
    for key, alone in one.items():
        for shared in (rank[key] for rank in two):
            torch.testing.assert_close(shared["grad_norm"], alone["grad_norm"], rtol=1e-9, atol=0)
            for name, gradient in alone["gradients"].items():
                torch.testing.assert_close(
                    shared["gradients"][name], gradient, rtol=1e-6, atol=1e-12, msg=name
                )
        mean = (two[0][key]["losses"] + two[1][key]["losses"]) / 2
        torch.testing.assert_close(mean, alone["losses"], rtol=1e-9, atol=0)


@pytest.mark.processes
def test_gradients_are_exchanged_once_in_an_optimizer_step(one_and_two):
    """Method 8.11, at every accumulation; these networks fit into one bucket."""
    for done in one_and_two[0].values():
        assert done["all_reduces"] == 0
    for done in (done for rank in one_and_two[1] for done in rank.values()):
        assert done["all_reduces"] == 1
