"""Ridge regression from sums, against scikit-learn and numpy."""

import numpy as np
import torch
from sklearn.linear_model import Ridge

from downstream_tasks.signal.ridge import STRENGTHS, Choice, CrossSums

N, ROIS, INPUTS, OUTPUTS, FOLDS = 600, 4, 6, 3, 3


def data(seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, ...]:
    """Inputs of different size, outputs with an intercept for each ROI, ROIs, folds."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, INPUTS)) * np.arange(1, INPUTS + 1) + 5
    roi, fold = rng.integers(0, ROIS, N), np.arange(N) % FOLDS
    y = x @ rng.normal(size=(INPUTS, OUTPUTS)) + 10 * roi[:, None]
    return x, y + noise * rng.normal(size=y.shape), roi, fold


def summed(x, y, roi, fold) -> CrossSums:
    sums = CrossSums(FOLDS, ROIS, x.shape[1], y.shape[1])
    for k in range(FOLDS):
        for part in np.array_split(np.flatnonzero(fold == k), 3):
            sums.add(*(torch.from_numpy(a[part]) for a in (x, y, roi)), k)
    return sums


def by_hand(x, y, roi, strength, x_new, roi_new):
    """scikit-learn on inputs standardised within ROIs, with the ROIs' means put back."""
    mean_x, mean_y = (np.stack([a[roi == r].mean(0) for r in range(ROIS)]) for a in (x, y))
    sd = np.sqrt(((x - mean_x[roi]) ** 2).mean(0))
    model = Ridge(alpha=strength * len(x), fit_intercept=False)
    model.fit((x - mean_x[roi]) / sd, y - mean_y[roi])
    return model.predict((x_new - mean_x[roi_new]) / sd) + mean_y[roi_new]


def test_the_fit_and_its_choices_are_those_of_scikit_learn():
    x, y, roi, fold = data(noise=20.0)
    subsets = {"few": [0, 1], "more": [0, 2, 3, 4, 5]}
    choices = [Choice(name, np.array(columns)) for name, columns in subsets.items()]
    found = summed(x, y, roi, fold).fit(choices)
    errors = {}
    for name, columns in subsets.items():
        sd = np.sqrt(
            np.mean([(x[i] - x[roi == roi[i]].mean(0)) ** 2 for i in range(N)], axis=0)
        )  # inputs are standardised by all training people, in every fold
        z = x[:, columns] / sd[columns]
        for strength in STRENGTHS:
            squared = 0.0
            for k in range(FOLDS):
                fit, score = fold != k, fold == k
                mx, my = (
                    np.stack([a[fit & (roi == r)].mean(0) for r in range(ROIS)]) for a in (z, y)
                )
                model = Ridge(alpha=strength * fit.sum(), fit_intercept=False)
                model.fit(z[fit] - mx[roi[fit]], y[fit] - my[roi[fit]])
                predicted = model.predict(z[score] - mx[roi[score]]) + my[roi[score]]
                squared += ((predicted - y[score]) ** 2).sum()
            errors[name, strength] = squared
    best = min(errors, key=errors.get)
    assert (found.choice, found.strength) == best
    means = {
        k: np.stack([y[(fold != k) & (roi == r)].mean(0) for r in range(ROIS)])
        for k in range(FOLDS)
    }
    distance = sum(((y[i] - means[fold[i]][roi[i]]) ** 2).sum() for i in range(N))
    np.testing.assert_allclose(found.r2, 1 - errors[best] / distance, rtol=1e-6)
    columns = subsets[found.choice]
    expected = by_hand(x[:, columns], y, roi, found.strength, x[:, columns], roi)
    predicted = found.full.predict(torch.from_numpy(x), torch.from_numpy(roi))
    np.testing.assert_allclose(predicted.numpy(), expected, rtol=1e-5)


def test_a_fit_without_a_fold_does_not_know_it():
    x, y, roi, fold = data()
    choice = [Choice("all", np.arange(INPUTS))]
    before = summed(x, y, roi, fold).fit(choice)
    changed = y.copy()
    changed[fold == 1] += 1e-9 * np.random.default_rng(1).normal(size=changed[fold == 1].shape)
    changed[fold == 1, 0] *= 1.5
    after = summed(x, changed, roi, fold).fit(choice)
    same = before.strength == after.strength
    torch.testing.assert_close(before.without[1].coefficients, after.without[1].coefficients)
    assert same
    assert not torch.allclose(before.full.coefficients, after.full.coefficients)


def test_some_outputs_alone_are_fitted_as_if_there_were_no_others():
    x, y, roi, fold = data(noise=5.0)
    choice = [Choice("all", np.arange(INPUTS))]
    some = summed(x, y, roi, fold).fit(choice, outputs=np.array([2, 0]))
    alone = summed(x, y[:, [2, 0]], roi, fold).fit(choice)
    torch.testing.assert_close(some.full.coefficients, alone.full.coefficients)
    torch.testing.assert_close(some.full.intercepts, alone.full.intercepts)
    assert some.r2 == alone.r2


def test_stacking_fits_what_the_baseline_leaves():
    x, y, roi, fold = data(noise=5.0)
    baseline = y + np.random.default_rng(2).normal(size=y.shape)
    joined = np.concatenate([baseline, x], axis=1)
    columns = np.arange(joined.shape[1])
    found = summed(joined, y, roi, fold).fit([Choice("all", columns)], minus=np.arange(OUTPUTS))
    left = summed(joined, y - baseline, roi, fold).fit([Choice("all", columns)])
    assert found.strength == left.strength
    torch.testing.assert_close(found.full.coefficients, left.full.coefficients)
    inputs, strata = torch.from_numpy(joined), torch.from_numpy(roi)
    expected = baseline + left.full.predict(inputs, strata).numpy()
    np.testing.assert_allclose(found.full.predict(inputs, strata), expected, rtol=1e-5)
    plain = summed(joined, y, roi, fold)
    assert 0.9 < found.r2 < 1  # of the outputs, not of what the baseline leaves of them
    assert plain.fit([Choice("x", columns[OUTPUTS:])]).r2 < found.r2


def test_features_that_say_nothing_leave_the_baseline_as_it_is():
    rng = np.random.default_rng(0)
    y, roi, fold = rng.normal(size=(N, 2)), rng.integers(0, ROIS, N), np.arange(N) % FOLDS
    joined = np.concatenate([y + 1e-9 * rng.normal(size=y.shape), rng.normal(size=(N, 30))], axis=1)
    found = summed(joined, y, roi, fold).fit([Choice("", np.arange(32))], minus=np.arange(2))
    predicted = found.full.predict(torch.from_numpy(joined), torch.from_numpy(roi))
    np.testing.assert_allclose(predicted, joined[:, :2], atol=1e-6)


def test_constant_inputs_and_a_stratum_without_samples_are_no_trouble():
    x, y, roi, fold = data()
    x[:, 3], roi[roi == 2] = 7.0, 1
    found = summed(x, y, roi, fold).fit([Choice("all", np.arange(INPUTS))])
    assert found.full.coefficients.isfinite().all()
    assert found.full.intercepts.isfinite().all()
    torch.testing.assert_close(found.full.coefficients[3], torch.zeros(OUTPUTS).double())


def test_mean_and_covariance_are_numpys():
    x, y, roi, fold = data()
    mean, covariance = summed(x, y, roi, fold).moments()
    np.testing.assert_allclose(mean, x.mean(0))
    np.testing.assert_allclose(covariance, np.cov(x.T, ddof=0), atol=1e-9)
