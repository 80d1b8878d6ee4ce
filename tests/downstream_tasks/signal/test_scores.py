"""Sums over hidden values give the R2 and r of the values themselves."""

import numpy as np
import torch

from downstream_tasks.signal.clips import Batch
from downstream_tasks.signal.hiding import Hiding, random_hidings
from downstream_tasks.signal.scores import Scores
from tests.downstream_tasks.signal.conftest import make_task

ROIS, PATCHES, SIZE = 4, 2, 3


def batch_of(hiding: Hiding, people: list[int], seed: int) -> Batch:
    clips = torch.randn(
        len(people), ROIS, PATCHES * SIZE, generator=torch.Generator().manual_seed(seed)
    )
    hidden = hiding.take_hidden(clips)
    measured = torch.ones(hidden.shape[:2], dtype=torch.bool)
    return Batch(hiding, 0, hiding.show(clips), None, hidden, measured, np.array(people), None)


def test_scores_are_those_of_the_values():
    hidings = random_hidings((ROIS, PATCHES), SIZE, 0.5, 2, seed=0)
    means = torch.arange(ROIS).double()
    scores, values = Scores.empty(3, ROIS), []
    for seed, (hiding, people) in enumerate(zip(hidings, [[0, 1, 0], [1, 0]], strict=True)):
        batch = batch_of(hiding, people, seed)
        batch.measured[0, 0] = False
        predicted = batch.hidden * 0.5 + 0.3
        scores.add(batch, predicted, means)
        for b, person in enumerate(people):
            for h, roi in enumerate(hiding.rois):
                if batch.measured[b, h]:
                    true, guess = (v[b, h].flatten().numpy() for v in (batch.hidden, predicted))
                    values += [(person, roi, t, g) for t, g in zip(true, guess, strict=True)]
    table = np.array(values)
    for person in (0, 1):
        _, roi, true, guess = table[table[:, 0] == person].T
        true, guess = true - roi, guess - roi  # the means are 0, 1, 2, 3
        r2 = 1 - ((true - guess) ** 2).sum() / (true**2).sum()
        np.testing.assert_allclose(scores.r2()[person], r2, rtol=1e-5)
        np.testing.assert_allclose(scores.r()[person], np.corrcoef(true, guess)[0, 1], rtol=1e-5)
    assert np.isnan(scores.r2()[2])
    some = np.array([1, 3])
    _, roi, true, guess = table[(table[:, 0] == 0) & np.isin(table[:, 1], some)].T
    r2 = 1 - ((true - guess) ** 2).sum() / ((true - roi) ** 2).sum()
    np.testing.assert_allclose(scores.r2(some)[0], r2, rtol=1e-5)


def test_the_training_mean_has_r2_0_and_no_correlation():
    hiding = random_hidings((ROIS, PATCHES), SIZE, 0.5, 1, seed=0)[0]
    batch, means = batch_of(hiding, [0, 0], 0), torch.full((ROIS,), 0.7).double()
    scores = Scores.empty(1, ROIS)
    scores.add(batch, torch.full(batch.hidden.shape, 0.7), means)
    np.testing.assert_allclose(scores.r2(), 0, atol=1e-6)
    assert np.isnan(scores.r()[0])


def test_the_means_are_those_of_the_hidden_values_of_training_people(two_networks_files):
    task, _ = make_task(*two_networks_files, "imputation", data={"normalization": "none"})
    values = {roi: [] for roi in range(task.grid[0])}
    for batch in task.train:
        for b in range(len(batch.people)):
            for h, roi in enumerate(batch.hiding.rois):
                if batch.measured[b, h]:
                    values[roi].append(batch.hidden[b, h].numpy())
    expected = [np.mean(of_roi) if of_roi else 0 for of_roi in values.values()]
    np.testing.assert_allclose(task.roi_means, expected, atol=1e-5)
    assert max(map(abs, expected)) > 0.01
