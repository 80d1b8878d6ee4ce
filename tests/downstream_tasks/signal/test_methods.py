"""The methods against independent implementations and known laws, and what they must not see."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge

from downstream_tasks.signal.baselines import REGISTRY, names_in
from downstream_tasks.signal.evaluate import evaluate_baselines, evaluate_model
from downstream_tasks.signal.kernels import WIDTHS, distances
from downstream_tasks.signal.networks import FrozenNetworks
from src.pretrained.load import load_pretrained
from tests.downstream_tasks.conftest import write_checkpoint
from tests.downstream_tasks.signal.conftest import (
    AR_1,
    FRAMES,
    ROIS,
    autoregression,
    make_task,
    signal_folder,
)

PROTOCOLS = ("imputation", "forecast")


@pytest.fixture(scope="module", params=PROTOCOLS)
def case(request, two_networks_files):
    """A protocol, its task, test clips and every method fitted."""
    task, test = make_task(*two_networks_files, request.param)
    methods, _ = evaluate_baselines(task, test, names_in(request.param), request.param)
    return request.param, task, test, methods


def clips_of(batches) -> np.ndarray:
    return np.concatenate([batch.whole.numpy() for batch in batches])


# --- against others ------------------------------------------------------------------------------


def test_ridge_is_scikit_learns(two_networks_files):
    task, test = make_task(*two_networks_files, "imputation")
    method = REGISTRY["ridge"].fit(task)
    clips = clips_of(task.train)
    frames = clips.transpose(0, 2, 1)
    near = np.concatenate(
        [frames, frames[:, [0, *range(FRAMES - 1)]], frames[:, [*range(1, FRAMES), FRAMES - 1]]], 2
    )
    for batch in test.clips:
        seen, fit = batch.hiding.visible_rois, method.fitted[batch.number]
        columns = {
            "same frame": seen,
            "three frames": np.concatenate([seen, seen + ROIS, seen + 2 * ROIS]),
        }[fit.choice]
        x = near.reshape(-1, 3 * ROIS)[:, columns]
        y = frames.reshape(-1, ROIS)[:, batch.hiding.rois]
        sd = x.std(0)
        model = Ridge(alpha=fit.strength * len(x)).fit(x / sd, y)
        shown = batch.shown.numpy().transpose(0, 2, 1)
        tested = np.concatenate(
            [shown, shown[:, [0, *range(FRAMES - 1)]], shown[:, [*range(1, FRAMES), FRAMES - 1]]],
            2,
        )[..., columns]
        expected = model.predict(tested.reshape(-1, len(columns)) / sd)
        expected = expected.reshape(len(shown), FRAMES, -1).transpose(0, 2, 1)
        found = method.predict(batch, None).flatten(2)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_kernel_averages_are_those_of_a_loop(two_networks_files):
    task, test = make_task(*two_networks_files, "imputation")
    features = task.features
    sd = features.std(0)
    place = features / np.sqrt(sd)
    apart = np.array([[np.linalg.norm(a - b) for b in place] for a in place])
    apart /= np.median(apart[np.triu_indices(ROIS, 1)])
    np.testing.assert_allclose(distances(features), apart, rtol=1e-5)
    batch = next(iter(test.clips))
    inputs = REGISTRY["kernels"].fit(task).inputs.query(batch)
    size = task.patch_size
    for h, roi in enumerate(batch.hiding.rois):
        for k, width in enumerate(WIDTHS):
            weight = np.exp(-(apart[roi] ** 2) / (2 * width**2))[batch.hiding.visible_rois]
            weight = weight / max(weight.sum(), 1e-300)
            seen = batch.shown.numpy()[:, batch.hiding.visible_rois]
            expected = np.einsum("v,bvt->bt", weight, seen)[:, size : 2 * size]
            if weight.sum() > 0.5:  # in doubles the narrowest kernel may underflow here
                found = inputs[:, h, 1, k * size : (k + 1) * size]
                np.testing.assert_allclose(found, expected, atol=1e-4)


def test_var_is_least_squares_on_principal_components(two_networks_files):
    task, test = make_task(*two_networks_files, "forecast")
    method = REGISTRY["var"].fit(task)
    clips = clips_of(task.train)
    frames = clips.transpose(0, 2, 1).reshape(-1, ROIS)
    vectors = np.linalg.svd(frames - frames.mean(0), full_matrices=False)[2]
    n, order = 10, int(method.chosen["inputs"].split(", ")[1].split()[0])
    n = int(method.chosen["inputs"].split()[0])
    ahead = task.patch_size

    def past(clip: np.ndarray, end: int) -> np.ndarray:
        scores = (clip[:, :end].T - frames.mean(0)) @ vectors[:n].T
        return scores[-order:].ravel()

    longest = method.order
    ends = range(longest, FRAMES - ahead + 1)
    x = np.array([past(clip, end) for clip in clips for end in ends])
    y = np.array([clip[:, end : end + ahead].ravel() for clip in clips for end in ends])
    sd = x.std(0)
    model = Ridge(alpha=method.fitted.strength * len(x)).fit(x / sd, y)
    for batch in test.clips:
        shown = batch.shown.numpy()
        asked = np.array([past(clip, FRAMES - ahead) for clip in shown])
        expected = model.predict(asked / sd).reshape(batch.hidden.shape)
        np.testing.assert_allclose(method.predict(batch, None), expected, rtol=1e-2, atol=1e-3)


def test_autoregression_reaches_what_theory_allows(tmp_path):
    data = signal_folder(tmp_path / "data", autoregression, people=60)
    checkpoint = write_checkpoint(tmp_path / "c.pth.tar", data, (ROIS, FRAMES))
    task, test = make_task(data, checkpoint, "forecast", data={"normalization": "none"})
    names = ("mean", "ar", "kernels", "var", "persistence")
    _, rows = evaluate_baselines(task, test, names, "forecast")
    r2 = {row.name: np.nanmean(row.scores.r2()) for row in rows}
    steps = np.arange(1, task.patch_size + 1)
    possible = np.mean(AR_1 ** (2 * steps))
    assert r2["ar"] == pytest.approx(possible, abs=0.04)
    assert r2["ar"] > r2["var"] + 0.005
    assert r2["persistence"] == pytest.approx(np.mean(2 * AR_1**steps - 1), abs=0.06)
    clips = clips_of(task.train)
    x, y = clips[:, :, -task.patch_size - 1].ravel(), clips[:, :, -task.patch_size :]
    slopes = LinearRegression().fit(x[:, None], y.reshape(-1, task.patch_size)).coef_[:, 0]
    np.testing.assert_allclose(slopes, AR_1**steps, atol=0.06)


def test_two_networks_are_imputed_by_the_ridge_that_averages_their_rois(two_networks_files):
    task, test = make_task(*two_networks_files, "imputation", data={"normalization": "none"})
    _, rows = evaluate_baselines(task, test, ("mean", "kernel", "ridge"), "imputation")
    r2 = {row.name: np.nanmean(row.scores.r2()) for row in rows}
    variance = np.mean([c.var() for c in clips_of(test.clips)])
    assert r2["ridge"] > 1 - 0.25 * 1.7 / variance  # of .25 noise, and some that the others have
    assert r2["mean"] == pytest.approx(0, abs=1e-6)


# --- what must not be seen -----------------------------------------------------------------------


def test_no_method_sees_what_is_hidden(case):
    _, _, test, methods = case
    for batch in test.clips:
        assert batch.shown.isnan().sum() == batch.hidden.numel()
        other = dataclasses.replace(batch, hidden=batch.hidden + torch.randn(batch.hidden.shape))
        for name, method in methods.items():
            found = method.predict(batch, None)
            assert found.isfinite().all(), name
            assert found.shape == batch.hidden.shape
            assert torch.equal(found, method.predict(other, None)), name


def test_networks_do_not_see_what_is_hidden(case, two_networks_files):
    _, task, test, _ = case
    found = load_pretrained(two_networks_files[1], with_predictor=True)
    networks = FrozenNetworks(found.encoder, found.predictor, task)
    batch = next(iter(test.clips))
    clips = batch.whole
    changed = batch.hiding.fill(clips, batch.hidden + torch.randn(batch.hidden.shape))
    shown = batch.hiding.show(changed)
    for one, other in zip(
        networks(batch)[:2], networks(dataclasses.replace(batch, shown=shown))[:2], strict=True
    ):
        assert one.isfinite().all()
        assert torch.equal(one, other)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_test_people_change_nothing_that_is_fitted(protocol, tmp_path):
    def other_for_test_people(rng):
        series = autoregression(rng)
        other_for_test_people.calls += 1
        person = (other_for_test_people.calls - 1) // 2
        return series * 3 + 1 if person % 5 == 4 and other_for_test_people.changed else series

    rows, predictions = [], []
    for changed in (False, True):
        other_for_test_people.calls, other_for_test_people.changed = 0, changed
        data = signal_folder(tmp_path / f"data{changed}", other_for_test_people)
        checkpoint = write_checkpoint(tmp_path / f"{changed}.pth.tar", data, (ROIS, FRAMES))
        task, test = make_task(data, checkpoint, protocol, data={"normalization": "none"})
        methods, of_baselines = evaluate_baselines(task, test, names_in(protocol), protocol)
        found = load_pretrained(checkpoint, with_predictor=True)
        networks = (found.encoder, found.predictor)
        stacked = {name: m for name, m in methods.items() if REGISTRY[name].learns}
        rows.append([*of_baselines, *evaluate_model(task, test, networks, stacked, protocol)])
        batch = next(iter(task.train))
        predictions.append({name: m.predict(batch, None) for name, m in methods.items()})
    for name in predictions[0]:
        assert torch.equal(predictions[0][name], predictions[1][name]), name
    for one, other in zip(*rows, strict=True):
        assert one.chosen == other.chosen
        np.testing.assert_equal(one.r2_training, other.r2_training)
    assert not np.allclose(np.nanmean(rows[0][-1].scores.r2()), np.nanmean(rows[1][-1].scores.r2()))


def test_a_fit_without_a_fold_does_not_predict_as_the_full_one(case):
    _, task, _, methods = case
    batch = next(iter(task.train))
    for name, method in methods.items():
        if REGISTRY[name].learns and name != "mlp":  # which may be stopped before it begins
            full, without = method.predict(batch, None), method.predict(batch, batch.fold)
            assert not torch.equal(full, without), name


def test_what_is_stacked_on_predicts_people_it_was_not_fitted_to(case, two_networks_files):
    protocol, task, test, methods = case
    asked = []

    class Recorded:
        chosen, r2 = {}, 0.0

        def predict(self, batch, fold):
            asked.append((batch.fold, fold))
            return methods["kernels"].predict(batch, fold)

    found = load_pretrained(two_networks_files[1], with_predictor=True)
    networks = (found.encoder, found.predictor)
    evaluate_model(task, test, networks, {"kernels": Recorded()}, protocol)
    assert {fold for fold, _ in asked} == {None, 0, 1, 2}
    assert all(of_people == of_fit for of_people, of_fit in asked)
