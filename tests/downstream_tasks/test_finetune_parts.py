"""Fine-tuning: rates, losses and the choice of the epoch; what it refuses."""

import dataclasses

import numpy as np
import pytest
import torch

from downstream_tasks import main_finetune
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.engine_finetune import make_criterion, make_optimizer, make_schedule
from downstream_tasks.evaluation import prepare
from downstream_tasks.finetune_state import BEST, Progress, state_folder
from src.datasets.folder import DataFolder
from src.datasets.folder.writer import FolderWriter
from src.models.downstream_vit import DownstreamViT
from src.pretrained.load import load_pretrained
from src.utils.errors import UserError
from src.utils.schedulers import WarmupCosine
from tests.downstream_tasks.conftest import CPU

# --- parts ----------------------------------------------------------------------------------------


def test_learning_rate_of_every_layer_in_a_step(make_config, monkeypatch):
    config = make_config(fine_tune={"epochs": 2, "warmup_epochs": 1.0, "min_lr": 1e-4})
    seen = []
    real = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        seen.append({g["lr_scale"]: g["lr"] for g in self.param_groups})
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    main_finetune.run(config, [CPU])
    peak = 0.1 * 8 / 256
    rate = WarmupCosine(total=6, warmup=3, start=0.0, peak=peak, final=1e-4)
    assert len(seen) == 6
    for number, groups in enumerate(seen, start=1):
        assert sorted(groups) == pytest.approx([0.75**3, 0.75**2, 0.75, 1.0])
        for scale, lr in groups.items():
            assert lr == pytest.approx(scale * rate(number))
    assert rate(1) == pytest.approx(peak / 3)
    assert rate(3) == pytest.approx(peak)
    assert rate(6) == pytest.approx(1e-4)


def test_published_rate():
    """Base rate 1e-3 and batch 16 (method 7)."""
    config = DownstreamConfig().fine_tune
    rate = make_schedule(config, steps_per_epoch=10, batch=16)
    assert rate.peak == 1e-3 * 16 / 256
    exact = make_schedule(dataclasses.replace(config, lr=0.25), steps_per_epoch=10, batch=16)
    assert exact.peak == 0.25
    assert (rate.warmup, rate.total, rate.final) == (0, 500, 1e-6)


def test_drop_path_is_that_of_the_config(make_config, drop_rates):
    main_finetune.run(make_config(fine_tune={"epochs": 1, "drop_path": 0.3}), [CPU])
    assert drop_rates[0] == [0.0, 0.3]


def test_gradient_clipping(make_config, monkeypatch):
    norms = []
    real = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        gradients = [p.grad for g in self.param_groups for p in g["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    main_finetune.run(make_config(fine_tune={"epochs": 1, "clip_grad": 1e-3}), [CPU])
    assert norms == pytest.approx([1e-3] * 3, rel=1e-3)


def test_class_weights_and_smoothing(make_config):
    config = make_config(
        data={"target": "few"}, split={"seed": 1}, evaluation={"class_weights": "balanced"}
    )
    problem = prepare(config).problems[0]
    outputs = torch.tensor([[2.0, -1.0], [0.5, 0.25]])
    y = torch.tensor([0, 1])
    ft = dataclasses.replace(config.fine_tune, smoothing=0.2)
    counts = np.bincount(problem.target.y[problem.split.train])
    weights = counts.sum() / (2 * counts)
    log_p = outputs.log_softmax(dim=1).numpy()
    aim = np.array([[0.9, 0.1], [0.1, 0.9]])  # smoothing takes .2 and gives it to both
    expected = -(aim * log_p * weights).sum(axis=1).mean()
    assert make_criterion(problem, ft, CPU)(outputs, y).item() == pytest.approx(expected, rel=1e-5)


def test_weight_decay_spares_biases_and_norms(rehearsal):
    pretrained = load_pretrained(rehearsal.checkpoint)
    model = DownstreamViT(pretrained.trainable_copy(), 2)
    optimizer = make_optimizer(model, DownstreamConfig().fine_tune)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == 0.0 or parameter.ndim > 1


@pytest.mark.parametrize("metric", ["balanced_accuracy", "mse"])
def test_best_epoch(metric):
    progress = Progress()
    sign = -1 if metric == "mse" else 1
    improved = []
    rows = [(0.5, 0.7), (0.8, 0.9), (0.8, 0.6), (0.8, 0.6), (0.7, 0.1), (0.9, np.nan)]
    for score, loss in rows:
        progress.losses = [1.0, 2.0]
        improved.append(progress.end_epoch(sign * score, loss, 0.1, metric))
    assert improved == [True, True, True, False, False, False]
    assert progress.best_epoch == 3
    assert progress.history[0]["train_loss"] == 1.5


# --- refusals -------------------------------------------------------------------------------------


def test_a_finished_folder_is_not_overwritten(make_config):
    config = make_config(fine_tune={"epochs": 1})
    with pytest.raises(UserError, match="nothing to resume"):
        main_finetune.run(config, [CPU], resume=True)
    main_finetune.run(config, [CPU])
    kept = [state_folder(config, "seed0") / "result.npz", config.output_dir / "split_seed0.tsv"]
    before = [path.read_bytes() for path in kept]
    with pytest.raises(UserError, match="already holds a run"):
        main_finetune.run(make_config(split={"seed": 5}), [CPU])
    scored = {"metric": "auroc", "clips": 2}
    with pytest.raises(UserError, match=r"evaluation\.metric is 'auroc', was 'balanced_accuracy'.*"
                       r"evaluation\.clips is 2, was 1"):  # fmt: skip
        main_finetune.run(
            make_config(fine_tune={"epochs": 1}, evaluation=scored), [CPU], resume=True
        )
    other = make_config(fine_tune={"epochs": 2, "smoothing": 0.1})
    with pytest.raises(UserError, match=r"fine_tune\.epochs is 2, was 1; fine_tune\.smoothing"):
        main_finetune.run(other, [CPU], resume=True)
    batch = 2 * config.fine_tune.batch_size
    larger = make_config(fine_tune={"epochs": 1, "batch_size": batch})
    products = rf"batch_size x accumulation_steps x devices is {batch}, was {batch // 2}\."
    with pytest.raises(UserError, match=products):
        main_finetune.run(larger, [CPU], resume=True)
    others = make_config(fine_tune={"epochs": 1}, split={"seed": 5})
    with pytest.raises(UserError, match="the people of the split are others"):
        main_finetune.run(others, [CPU], resume=True)
    assert [path.read_bytes() for path in kept] == before


def test_a_later_seed_that_is_stored_refuses_the_run_before_anything_is_written(make_config):
    main_finetune.run(make_config(fine_tune={"epochs": 1}, evaluation={"seed": 1}), [CPU])
    config = make_config(fine_tune={"epochs": 1}, evaluation={"num_seed": 2})
    with pytest.raises(UserError, match="seed1 already holds a run"):
        main_finetune.run(config, [CPU])
    assert not state_folder(config, "seed0").exists()
    assert not (config.output_dir / "split_seed0.tsv").exists()


def test_too_few_people_for_a_batch(make_config):
    with pytest.raises(UserError, match="24 training examples are fewer than"):
        main_finetune.run(make_config(fine_tune={"batch_size": 32}), [CPU])


def test_eval_without_anything_stored(make_config):
    with pytest.raises(UserError, match="is not fine-tuned, and there is no"):
        main_finetune.run(make_config(), [CPU], evaluate=True)


def test_eval_on_other_people_and_other_classes(make_config, rehearsal, tmp_path):
    config = make_config(fine_tune={"epochs": 1})
    main_finetune.run(config, [CPU])
    stored = {"load_path": str(state_folder(config, "seed0") / BEST)}
    other = make_config("other", model=stored, data={"target": "few"})
    with pytest.raises(UserError, match="The classes and their order"):
        main_finetune.run(
            dataclasses.replace(other, data=dataclasses.replace(other.data, classes=("b", "a"))),
            [CPU],
            evaluate=True,
        )
    source = DataFolder(rehearsal.data)

    def copy(name: str, people: list[str]) -> str:
        with FolderWriter(
            tmp_path / name, roi_labels=source.roi_labels, atlas="synthetic", provenance={}
        ) as writer:
            for i, person in enumerate(people):
                writer.add_run(source.series(i), participant_id=person, tr=2.0, group="ab"[i % 2])
        return str(tmp_path / name)

    new = make_config("new", model=stored, data={"data_path": copy("new", ["x", "y", "z"])})
    results = main_finetune.run(new, [CPU], evaluate=True)
    assert {name: getattr(results.splits[0], name) for name in ("train", "test")} == {
        "train": 0,
        "test": 3,
    }
    mixed = copy("mixed", ["sub-00", "sub-01", "z"])
    with pytest.raises(UserError, match=r"1 people .* in none of its splits: z"):
        main_finetune.run(
            make_config("mix", model=stored, data={"data_path": mixed}), [CPU], evaluate=True
        )


def test_a_loss_that_is_not_finite_names_the_runs(make_config):
    samples = r"step \d+ is not finite\. Samples: sub-\d\d \(session 01, run 01\).*--blr"
    with pytest.raises(UserError, match=samples):
        main_finetune.run(make_config(fine_tune={"blr": 1e30}), [CPU])
