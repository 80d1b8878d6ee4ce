"""Objectives beside the published one, from the config to the weights (method 11.4)."""

import copy
import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor

from src import train
from src.config import Config
from src.helper import init_model, init_opt, load_weights
from src.models.jepa import Networks, jepa_targets
from src.models.regularizers import between_clips, draw_directions, sigreg, vicreg
from src.pretrained.load import load_pretrained
from src.utils.checkpoint import NETWORKS, network_state, save_checkpoint
from src.utils.distributed import Ranks, launch
from src.utils.errors import UserError
from src.utils.precision import autocast
from tests.conftest import (
    COMPONENTS,
    FRAMES,
    ROIS,
    flat_weights,
    forked_workers,
    losses,
    read_latest,
    tiny_config,
    train_here,
)
from tests.test_resume import train_until
from tests.test_train_step import micro_batches

CPU = torch.device("cpu")
PATCH = 16
MAE, HYBRID = "meta.objective=mae", "meta.objective=hybrid"
CENTERED = "meta.targets=centered"


def config_of(*overrides: str) -> Config:
    return tiny_config(Path("none"), Path("none"), *overrides)


def networks_of(config: Config) -> Networks:
    """Networks of ``config`` in float64."""
    generator = torch.Generator().manual_seed(1)
    networks = init_model(config, torch.randn(ROIS, COMPONENTS, generator=generator), CPU)
    for part in NETWORKS:
        getattr(networks, part).double()
    return networks


def take_step(networks: Networks, config: Config, step: int = 1, clips: slice = slice(None)):
    """Take optimizer step ``step`` of pretraining; its record and what the optimizer was given."""
    optimizer, schedule = init_opt(networks, config, steps_per_epoch=2)
    given = {}

    def keep(*_: object) -> None:
        for part in ("encoder", "predictor"):
            for name, p in getattr(networks, part).named_parameters():
                given[f"{part}.{name}"] = None if p.grad is None else p.grad.clone()

    optimizer.register_step_pre_hook(keep)
    accumulation = config.meta.accumulation_steps
    record = train.train_step(
        step,
        iter(micro_batches(step, accumulation, clips)),
        networks,
        optimizer,
        schedule,
        accumulation,
        autocast(CPU, use_bfloat16=False),
        config.optimization.clip_grad,
    )
    return record, given


# --- by hand -------------------------------------------------------------------------------------


def signal_error(networks: Networks, x: Tensor, context: Tensor, target: Tensor) -> Tensor:
    """Squared error of the signal, patch by patch."""
    said = networks.predictor.features(networks.encoder(x, context), context, target)
    said = said @ networks.predictor.signal_head.weight.T + networks.predictor.signal_head.bias
    errors = []
    for clip, tokens in enumerate(target.tolist()):
        for place, token in enumerate(tokens):
            roi, patch = divmod(token, FRAMES // PATCH)
            hidden = x[clip, 0, roi, PATCH * patch : PATCH * (patch + 1)]
            errors.append((said[clip, place] - hidden).square())
    return torch.stack(errors).mean()


def latent_error(networks: Networks, x: Tensor, context: Tensor, target: Tensor) -> Tensor:
    """Squared error of the latent prediction from the LayerNorm of the target encoder's output."""
    with torch.no_grad():
        said = networks.target_encoder(x)
        said = (said - said.mean(-1, keepdim=True)) / (
            said.var(-1, unbiased=False, keepdim=True) + 1e-5
        ).sqrt()
        hidden = torch.stack([said[i, tokens] for i, tokens in enumerate(target)])
    prediction = networks.predictor(networks.encoder(x, context), context, target)
    return (prediction - hidden).square().mean()


@pytest.mark.parametrize(
    ("overrides", "weights"),
    [
        ([MAE], {"signal": 1.0}),
        ([HYBRID, "meta.signal_weight=0.3", "meta.loss=mse"], {"latent": 1.0, "signal": 0.3}),
        (["meta.loss=mse"], {"latent": 1.0}),
    ],
    ids=["mae", "hybrid", "mse"],
)
def test_losses_and_gradients_are_those_by_hand(overrides, weights):
    config = config_of(*overrides)
    networks = networks_of(config)
    errors = {"latent": latent_error, "signal": signal_error}
    parts = {name: [] for name in weights}
    for batch, (context,), (target,) in micro_batches(1, accumulation=2):
        for name in weights:
            parts[name].append(errors[name](networks, batch["fmri"], context, target))
    by_hand = {name: torch.stack(values).mean() for name, values in parts.items()}
    total = sum(weights[name] * value for name, value in by_hand.items())
    trained = {
        f"{part}.{name}": p
        for part in ("encoder", "predictor")
        for name, p in getattr(networks, part).named_parameters()
    }
    frozen = {name for name in trained if not trained[name].requires_grad}
    latent_head = {"predictor.predictor_proj.weight", "predictor.predictor_proj.bias"}
    assert frozen == (set() if "latent" in weights else latent_head)
    trained = {name: p for name, p in trained.items() if name not in frozen}
    expected = torch.autograd.grad(total, [*trained.values()])

    record, given = take_step(networks, config)
    torch.testing.assert_close(torch.stack(record.losses).mean(), total.detach())
    for name, gradient in zip(trained, expected, strict=True):
        torch.testing.assert_close(given[name], gradient, rtol=1e-9, atol=1e-14, msg=name)
    assert all(given[name] is None for name in frozen)

    several = {f"loss_{name}": value.detach() for name, value in by_hand.items()}
    assert record.parts.keys() == (several.keys() if len(several) > 1 else set())
    for name, value in record.parts.items():
        torch.testing.assert_close(value, several[name])


def test_centred_targets_are_those_of_the_steps_before():
    """The micro-steps of a step all have the mean of before it."""
    config = config_of(CENTERED, "meta.loss=mse")
    networks = networks_of(config)
    for step in (1, 2, 3):
        centering, expected = copy.deepcopy(networks.centering), []
        with torch.no_grad():
            for batch, (context,), (target,) in micro_batches(step, accumulation=2):
                x = batch["fmri"]
                hidden = centering(jepa_targets(networks.target_encoder, x, target), target)
                prediction = networks.predictor(networks.encoder(x, context), context, target)
                expected.append((prediction - hidden).square().mean())
        record, _ = take_step(networks, config, step)
        torch.testing.assert_close(torch.stack(record.losses), torch.stack(expected))
        assert (networks.centering.updates >= centering.updates).all()
        assert networks.centering.updates.sum() > centering.updates.sum()


@pytest.mark.parametrize("regularizer", ["vicreg", "sigreg"])
def test_a_regularizer_sees_the_context_features_and_sigreg_the_directions_of_the_step(regularizer):
    config = config_of(f"meta.regularizer={regularizer}", "meta.seed=3")
    networks, step = networks_of(config), 5
    expected = []
    for batch, (context,), _ in micro_batches(step, accumulation=2):
        seen = networks.encoder(batch["fmri"], context)
        of_batch = between_clips(seen, context, ROIS * FRAMES // PATCH)
        if regularizer == "vicreg":
            expected.append(vicreg(*of_batch))
        else:
            drawn = draw_directions(seen.shape[-1], seed=3, step=step, device=CPU)
            expected.append(sigreg(*of_batch, drawn))
    record, given = take_step(networks, config, step)
    found = record.parts["loss_regularizer"]
    torch.testing.assert_close(found, torch.stack(expected).mean().detach())
    assert all(gradient.isfinite().all() for gradient in given.values())


def test_a_large_gradient_is_scaled_to_the_norm_asked_for_and_logged_as_it_was():
    free, free_gradients = take_step(networks_of(config_of()), config_of())
    largest = 0.5 * free.grad_norm.item()
    for limit, scale in ((largest, 0.5), (2 * free.grad_norm.item(), 1.0)):
        config = config_of(f"optimization.clip_grad={limit}")
        record, gradients = take_step(networks_of(config), config)
        assert record.grad_norm.item() == pytest.approx(free.grad_norm.item(), rel=1e-9)
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                gradient, scale * free_gradients[name], rtol=1e-5, atol=1e-12, msg=name
            )


# --- two processes -------------------------------------------------------------------------------

IN_PARALLEL = {
    "mae": (MAE, "meta.accumulation_steps=2"),  # a head without gradient, and no static graph
    "hybrid": (HYBRID, CENTERED, "meta.accumulation_steps=1"),
    "centered": (CENTERED, "meta.loss=mse", "meta.accumulation_steps=2"),
    "options": (
        *(HYBRID, CENTERED, "meta.accumulation_steps=2"),
        *("meta.attention_bias=gradient", "meta.roi_value_rank=2", "meta.time_code=few_patches"),
    ),
}


def take_steps(ranks: Ranks, folder: Path) -> None:
    """In one process of ``ranks``: three steps of each objective, and where they led, saved."""
    share = 4 // ranks.world_size
    clips = slice(ranks.rank * share, (ranks.rank + 1) * share)
    done = {}
    for name, overrides in IN_PARALLEL.items():
        config = config_of(*overrides)
        networks = networks_of(config)
        networks.distribute(ranks, config.meta.accumulation_steps)
        steps = [take_step(networks, config, step, clips) for step in (1, 2, 3)]
        done[name] = {
            "loss": torch.stack([torch.stack(record.losses).mean() for record, _ in steps]),
            "gradients": [
                {name: grad for name, grad in given.items() if grad is not None}
                for _, given in steps
            ],
            "targets": networks.centering.state_dict() if networks.centering else {},
        }
    torch.save(done, folder / f"rank{ranks.rank}of{ranks.world_size}.pt")


@pytest.mark.processes
def test_two_processes_take_the_steps_of_one(tmp_path):
    take_steps(Ranks(CPU), tmp_path)
    with forked_workers():
        launch(take_steps, [CPU, CPU], tmp_path)
    one, *two = (
        torch.load(tmp_path / f"rank{name}.pt", weights_only=True)
        for name in ("0of1", "0of2", "1of2")
    )
    for name, alone in one.items():
        mean = (two[0][name]["loss"] + two[1][name]["loss"]) / 2
        torch.testing.assert_close(mean, alone["loss"], rtol=1e-6, atol=0)
        for rank in two:
            assert rank[name]["targets"].keys() == alone["targets"].keys()
            for key, value in alone["targets"].items():
                torch.testing.assert_close(rank[name]["targets"][key], value, msg=key)
            for ours, theirs in zip(rank[name]["gradients"], alone["gradients"], strict=True):
                assert ours.keys() == theirs.keys()
                for weight, gradient in theirs.items():
                    torch.testing.assert_close(
                        ours[weight], gradient, rtol=1e-5, atol=1e-9, msg=f"{name} {weight}"
                    )


# --- runs ----------------------------------------------------------------------------------------

RUNS = {
    "mae": (MAE,),
    "hybrid": (HYBRID, CENTERED, "meta.loss=mse", "optimization.clip_grad=0.1"),
    "vicreg": ("meta.regularizer=vicreg", "meta.regularizer_weight=0.5"),
    "sigreg": (MAE, "meta.regularizer=sigreg"),
    "options": (
        *(HYBRID, CENTERED, "meta.loss=mse", "meta.regularizer=sigreg"),
        *("meta.mask_mode=mixed", "optimization.clip_grad=0.5", "meta.use_bfloat16=true"),
        *("meta.attention_bias=gradient", "meta.roi_value_rank=2", "meta.time_code=few_patches"),
        *("data.global_signal=remove", "data.clip_sd=3"),
    ),
}
PARTS = {
    "hybrid": {"loss_latent": 1.0, "loss_signal": 1.0},
    "vicreg": {"loss_latent": 1.0, "loss_regularizer": 0.5},
    "sigreg": {"loss_signal": 1.0, "loss_regularizer": 1.0},
    "options": {"loss_latent": 1.0, "loss_signal": 1.0, "loss_regularizer": 1.0},
}


@pytest.fixture(scope="module", params=RUNS)
def run(request, data, tmp_path_factory) -> tuple[str, Path]:
    """A finished run of each objective."""
    folder = tmp_path_factory.mktemp("logs") / request.param
    train_here(tiny_config(data, folder, *RUNS[request.param]))
    return request.param, folder


def test_a_run_stopped_and_resumed_is_bit_for_bit(run, data, tmp_path):
    name, finished = run
    config = tiny_config(data, tmp_path / "run", *RUNS[name])
    train_until(3, config)
    resumed, expected = train_here(config, resume=True), read_latest(finished)
    assert torch.equal(flat_weights(resumed), flat_weights(expected))
    assert losses(tmp_path / "run") == losses(finished)
    assert bool(expected["targets"]) is (CENTERED in RUNS[name])
    for key, value in expected["targets"].items():
        assert torch.equal(resumed["targets"][key], value), key


def test_the_parts_of_a_loss_have_columns_where_there_are_several(run):
    name, folder = run
    with (folder / "jepa_r0.csv").open() as file:
        rows = list(csv.DictReader(file))
    named = [column for column in rows[0] if column.startswith("loss_")]
    weights = PARTS.get(name, {})
    assert named == list(weights)
    for row in rows:
        if named:
            total = sum(weight * float(row[part]) for part, weight in weights.items())
            assert float(row["loss"]) == pytest.approx(total, rel=1e-5)
        assert float(row["loss"]) > 0


def test_the_target_encoder_follows_and_is_what_the_evaluation_loads(run):
    name, folder = run
    state = read_latest(folder)
    weight = "module.patch_embed.proj.weight"
    assert not torch.equal(state["encoder"][weight], state["target_encoder"][weight])
    pretrained = load_pretrained(folder / "jepa-latest.pth.tar")
    own = pretrained.encoder.patch_embed.proj.weight
    assert torch.equal(own, state["target_encoder"][weight])
    assert ("module.signal_head.weight" in state["predictor"]) is (name != "vicreg")


def test_a_recipe_that_collapses_does_not_with_a_regularizer(data, tmp_path):
    """A target encoder that follows at once, and a large learning rate."""
    recipe = (
        "optimization.epochs=30",
        "optimization.warmup=2",
        "optimization.lr=0.003",
        "optimization.ema=[0.5,0.5]",
        "meta.accumulation_steps=1",
        "data.batch_size=4",
        "logging.monitor_every=100",
        "logging.monitor_clips=8",
    )
    left = {}
    for name in ("none", "vicreg", "sigreg"):
        config = tiny_config(data, tmp_path / name, *recipe, f"meta.regularizer={name}")
        monitors = train_here(config)["monitors"]
        left[name] = monitors["last"]["variance"] / monitors["first"]["variance"]
    assert left["none"] < 0.2
    assert left["vicreg"] > 0.8
    assert left["sigreg"] > 0.8


@pytest.mark.parametrize(
    "override",
    [
        "meta.objective=jepa",
        "meta.signal_weight=2.0",
        "meta.loss=mse",
        CENTERED,
        "meta.regularizer=sigreg",
        "optimization.clip_grad=1",
    ],
)
def test_a_run_goes_on_with_its_own_objective_only(data, tmp_path, override):
    config = tiny_config(data, tmp_path / "run", HYBRID)
    train_until(1, config)
    key = override.partition("=")[0]
    with pytest.raises(UserError, match=rf"differs where it matters: {key} is"):
        train_here(tiny_config(data, tmp_path / "run", HYBRID, override), resume=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["meta.signal_weight=2"],
            r"meta\.signal_weight is 2\.0; allowed: 1\.0, or ",
        ),
        ([MAE, "meta.signal_weight=2"], r"meta\.signal_weight is 2\.0"),
        ([MAE, "meta.loss=mse"], r"meta\.loss is 'mse'; allowed: smooth_l1 beside .* mae"),
        ([MAE, CENTERED], r"meta\.targets is 'centered'; allowed: layernorm beside .* mae"),
        (
            ["meta.regularizer_weight=2"],
            r"regularizer_weight is 2\.0; allowed: 1\.0 beside",
        ),
        (
            ["meta.regularizer=vicreg", "data.batch_size=1"],
            r"data\.batch_size is 1; allowed: 2 or more beside meta\.regularizer vicreg",
        ),
        (["optimization.clip_grad=0"], r"optimization\.clip_grad is 0"),
    ],
)
def test_values_without_effect_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        config_of(*overrides)


def test_a_run_may_begin_with_weights_that_have_a_signal_head_or_none(tmp_path, caplog):
    """The head that only the new run has stays as it was initialised."""
    jepa, hybrid = (init_model(config_of(o), torch.randn(ROIS, COMPONENTS), CPU) for o in (
        "meta.objective=jepa", HYBRID))  # fmt: skip
    for name, networks in (("jepa", jepa), ("hybrid", hybrid)):
        with torch.no_grad():
            networks.predictor.predictor_proj.bias.fill_(7)
        state = {part: network_state(getattr(networks, part)) for part in NETWORKS}
        save_checkpoint(tmp_path / f"{name}.pth.tar", state)
    fresh = init_model(config_of(HYBRID), torch.randn(ROIS, COMPONENTS), CPU)
    before = fresh.predictor.signal_head.weight.clone()
    load_weights(fresh, tmp_path / "jepa.pth.tar")
    assert (fresh.predictor.predictor_proj.bias == 7).all()
    assert torch.equal(fresh.predictor.signal_head.weight, before)
    assert "has no signal head: it begins with random weights" in caplog.text
    fresh = init_model(config_of(), torch.randn(ROIS, COMPONENTS), CPU)
    load_weights(fresh, tmp_path / "hybrid.pth.tar")
    assert (fresh.predictor.predictor_proj.bias == 7).all()
    assert "is not used: meta.objective has none" in caplog.text
