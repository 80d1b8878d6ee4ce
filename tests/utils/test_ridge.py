"""Ridge regression from sums, against scikit-learn on the samples themselves."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from src.utils.ridge import STRENGTHS, RidgeSums

N, D_IN, D_OUT, STRATA, FOLDS = 120, 6, 3, 2, 4


@pytest.fixture
def samples() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D_IN)) * np.array([3, 2, 1, 1, 0.5, 0.1]) + 5
    strata, folds = np.arange(N) % STRATA, np.arange(N) // 2 % FOLDS
    offsets = rng.normal(size=(STRATA, D_OUT)) * 10
    y = x @ rng.normal(size=(D_IN, D_OUT)) + offsets[strata] + 4 * rng.normal(size=(N, D_OUT))
    return {"x": x, "y": y, "strata": strata, "folds": folds}


def fill(samples, size: int = 7) -> RidgeSums:
    sums = RidgeSums(FOLDS, STRATA, D_IN, D_OUT)
    for stratum in range(STRATA):
        rows = np.flatnonzero(samples["strata"] == stratum)
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            sums.add(
                *(torch.from_numpy(samples[k][chosen]) for k in ("x", "y", "folds", "strata")),
                weight=stratum + 1,
            )
    return sums


def by_hand(samples, rows, strength):
    """Scikit-learn's ridge on samples that are centred in their stratum; its coefficients."""
    x, y, strata = samples["x"][rows], samples["y"][rows], samples["strata"][rows]
    weight = strata + 1.0
    means_x = np.stack([x[strata == s].mean(0) for s in range(STRATA)])
    means_y = np.stack([y[strata == s].mean(0) for s in range(STRATA)])
    x, y = x - means_x[strata], y - means_y[strata]
    scale = (weight[:, None] * x**2).sum(0).mean()
    ridge = Ridge(alpha=strength * scale, fit_intercept=False).fit(x, y, sample_weight=weight)
    return ridge.coef_.T, means_x, means_y


def test_the_strength_and_the_fit_are_those_of_cross_validation_by_hand(samples):
    errors = []
    for strength in STRENGTHS:
        error = 0.0
        for fold in range(FOLDS):
            inside = samples["folds"] == fold
            coefficients, means_x, means_y = by_hand(samples, ~inside, strength)
            strata = samples["strata"][inside]
            guess = (samples["x"][inside] - means_x[strata]) @ coefficients + means_y[strata]
            error += ((strata + 1)[:, None] * (samples["y"][inside] - guess) ** 2).sum()
        errors.append(error)
    best = int(np.argmin(errors))
    assert 0 < best < len(STRENGTHS) - 1  # a strength that the data choose
    expected, _, _ = by_hand(samples, np.full(N, True), STRENGTHS[best])
    found = fill(samples).fit().coefficients.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_batches_change_nothing(samples):
    for one, other in zip(fill(samples, 1).fit(), fill(samples, N).fit(), strict=True):
        torch.testing.assert_close(one, other)


def test_strata_that_come_mixed_change_nothing(samples):
    samples["weight"] = samples["strata"] + 1.0
    mixed = RidgeSums(FOLDS, STRATA, D_IN, D_OUT)
    for weight in (1.0, 2.0):  # the first stratum once, the second, in all, twice
        rows = np.flatnonzero(samples["weight"] >= weight)
        mixed.add(*(torch.from_numpy(samples[k][rows]) for k in ("x", "y", "folds", "strata")))
    for one, other in zip(mixed.fit(), fill(samples).fit(), strict=True):
        torch.testing.assert_close(one, other)


def test_predictions_have_the_intercept_of_their_stratum(samples):
    fit = fill(samples).fit()
    coefficients, means_x, means_y = by_hand(samples, np.full(N, True), 0.0)
    x, strata = torch.from_numpy(samples["x"]), torch.from_numpy(samples["strata"])
    expected = (
        means_y[samples["strata"]]
        + (samples["x"] - means_x[samples["strata"]]) @ fit.coefficients.numpy()
    )
    np.testing.assert_allclose(fit.predict(x, strata).numpy(), expected)
    assert coefficients.shape == fit.coefficients.shape


def test_noise_is_not_fitted(samples):
    samples["y"] = np.random.default_rng(1).normal(size=(N, D_OUT))
    free, _, _ = by_hand(samples, np.full(N, True), 0.0)
    assert np.abs(fill(samples).fit().coefficients.numpy()).max() < 0.1 * np.abs(free).max()


def test_inputs_that_do_not_vary_give_zero_and_not_rounding(samples):
    samples["x"] = np.broadcast_to(samples["x"][0], (N, D_IN)).copy()
    assert not fill(samples).fit().coefficients.any()


def test_one_fold_takes_the_strongest(samples):
    samples["folds"][:] = 2
    expected, _, _ = by_hand(samples, np.full(N, True), STRENGTHS[-1])
    np.testing.assert_allclose(fill(samples).fit().coefficients.numpy(), expected, rtol=1e-6)


def test_folds_that_tell_strengths_not_apart_take_the_strongest(samples):
    """Where the strata of the other folds have one sample each, all strengths predict its mean."""
    chosen = [0, 1, 2, 3]  # two folds, each with one sample of either stratum
    one_each = {name: values[chosen] for name, values in samples.items()}
    expected, _, _ = by_hand(samples, np.array(chosen), STRENGTHS[-1])
    found = fill(one_each).fit().coefficients.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


def test_a_sum_that_is_not_finite_gives_nan(samples):
    samples["x"][3, 2] = np.inf
    assert fill(samples).fit().coefficients.isnan().all()
