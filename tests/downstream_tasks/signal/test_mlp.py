"""The supervised network: its noise, its start, and what it must not know."""

import dataclasses

import numpy as np
import pytest
import torch

from downstream_tasks.signal import mlp
from downstream_tasks.signal.mlp import fit_mlp
from tests.downstream_tasks.signal.conftest import make_task

NOISE = 0.5


@pytest.fixture(params=["imputation", "forecast"])
def trainer(request, two_networks_files):
    task, _ = make_task(*two_networks_files, request.param, signal={"noise": NOISE})
    return task, mlp._Trainer(task)


def test_noise_is_distributed_as_that_of_the_clips(trainer):
    task, of_task = trainer
    batch = next(iter(task.train))
    n = 4000
    generator = torch.Generator().manual_seed(1)
    noise = NOISE * torch.randn(n, *batch.shown.shape[1:], generator=generator)
    silent = torch.zeros(n, *batch.hidden.shape[1:])
    clips = dataclasses.replace(batch, shown=batch.hiding.show(noise), noise=None, hidden=silent)
    roi, inputs = batch.hiding.rois[2], of_task.linear.inputs
    expected = torch.cov(inputs.query(clips)[:, 2, 0].T)
    rois = torch.full((n,), int(roi))
    nothing = torch.zeros(n, inputs.n_inputs)
    sample = mlp._Sample(nothing, nothing, rois, torch.full_like(rois, batch.number), rois)
    first, second = of_task.noise.add(sample), of_task.noise.add(sample)
    np.testing.assert_allclose(torch.cov(first.T), expected, atol=0.03)
    assert not torch.equal(first, second)  # another one at every epoch


def test_a_network_without_a_fold_does_not_know_it(trainer):
    task, _ = trainer
    before = list(task.train)
    changed = [dataclasses.replace(b, hidden=b.hidden * 1.01) if b.fold == 1 else b for b in before]
    found = []
    for batches in (before, changed):
        task.train = batches
        task.shared.clear()
        one = mlp._Trainer(task)
        sample = mlp._sample(one.linear, batches, 10_000)
        found.append(
            [
                one.linear.fitted.strength,
                one.train(sample.of(sample.fold != 1), 2, fold=1).network.state_dict(),
                one.train(sample, 2).network.state_dict(),
            ]
        )
    (strength, without, full), (same, without_changed, full_changed) = found
    assert strength == same
    for name, value in without.items():
        torch.testing.assert_close(value, without_changed[name], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(full["4.weight"], full_changed["4.weight"], rtol=1e-3, atol=1e-5)


def test_it_begins_where_the_regression_ends(two_networks_files):
    task, test = make_task(*two_networks_files, "imputation", signal={"mlp_epochs": 1})
    found = fit_mlp(task)
    assert found.full.epoch in (0, 1)
    for network in (found.full.network, *(one.network for one in found.without)):
        torch.nn.init.zeros_(network[-1].weight)
        torch.nn.init.zeros_(network[-1].bias)
    for batch in test.clips:
        assert torch.equal(found.predict(batch, None), found.linear.predict(batch, None))


def test_a_law_that_no_linear_map_knows_is_learned(two_networks_files):
    task, test = make_task(
        *two_networks_files, "forecast", data={"normalization": "none"}, signal={"mlp_epochs": 8}
    )

    def bent(batch):  # the future is the square of the ROI's last visible frame
        last = batch.shown[..., batch.hiding.visible_frames - 1]
        return dataclasses.replace(
            batch, hidden=last.square()[:, :, None, None].expand(batch.hidden.shape)
        )

    task.train, task.valid = [bent(b) for b in task.train], [bent(b) for b in task.valid]
    found, error, of_linear = fit_mlp(task), 0.0, 0.0
    for batch in map(bent, test.clips):
        error += float((found.predict(batch, None) - batch.hidden).square().sum())
        of_linear += float((found.linear.predict(batch, None) - batch.hidden).square().sum())
    assert error < 0.5 * of_linear
    assert found.r2 > 0.5
