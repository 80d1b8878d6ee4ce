"""Heads: fitted on train, chosen without test, equal to plain scikit-learn and timm."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from timm.optim import Lars
from torch import nn

from downstream_tasks.cohort.problem import Problem, class_weights, make_target, validation_score
from downstream_tasks.cohort.splits import Split, draw_split, inner_folds
from downstream_tasks.config import AttentiveProbeConfig, HeadsConfig, LinearProbeConfig
from downstream_tasks.heads import estimators
from downstream_tasks.heads import linear_probe as probes
from downstream_tasks.heads.attentive_probe import attentive_probe
from downstream_tasks.heads.estimators import fit_head
from downstream_tasks.heads.linear_probe import lars_grid, published_probe
from downstream_tasks.heads.result import edge_notes
from downstream_tasks.scoring.metrics import classification_metrics
from src.utils.errors import UserError
from tests.downstream_tasks.conftest import make_cohort, separable

# A tenth of the published steps, so ten times its learning rates.
LARS = LinearProbeConfig(epochs=15, batch_size=16, grid_blr=(10.0, 300.0, 1000.0))


def problem_of(y, metric, classes=(), seed=0, **kwargs):
    cohort = make_cohort(y, classes=classes, **kwargs)
    split = draw_split(cohort, (0.6, 0.2, 0.2), 0)
    return Problem(cohort, split, make_target(cohort, split), metric, seed)


def accuracy(result, problem, part="test"):
    members = problem.split.parts()[part]
    return classification_metrics(problem.cohort.y[members], result.scores[members])["accuracy"]


@pytest.fixture
def binary():
    x, y = separable(100, 12, effect=4.0, seed=0)
    return x, problem_of(y, "balanced_accuracy", ("F", "M"))


@pytest.mark.parametrize("kind", ["logistic", "knn"])
@pytest.mark.parametrize("selection", ["cv", "valid"])
def test_classifiers_find_a_strong_effect(binary, kind, selection):
    x, problem = binary
    result = fit_head(kind, x, problem, HeadsConfig(selection=selection))
    assert result.scores.shape == (100, 2)
    np.testing.assert_allclose(result.scores.sum(1), 1)
    assert accuracy(result, problem) > (0.75 if kind == "logistic" else 0.6)


def test_the_brier_score_can_pick_the_setting():
    """Random features: the strongest penalty is the best calibrated, the weakest the most sure."""
    x, y = separable(60, 100, effect=0.0, seed=2)
    result = fit_head("logistic", x, problem_of(y, "brier", ("F", "M")), HeadsConfig())
    assert result.chosen["C"] == HeadsConfig().C[0]


def test_knn_and_ridge_regress():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 6)).astype(np.float32)
    problem = problem_of(50 + 8 * x[:, 0], "mse")
    test = problem.split.test
    for kind in ("ridge", "knn"):
        result = fit_head(kind, x, problem, HeadsConfig())
        assert np.corrcoef(result.scores[test], problem.cohort.y[test])[0, 1] > 0.6
    assert abs(result.scores).max() < 5  # z-scored, not 50


def test_wide_features_give_what_scikit_learn_gives_without_rotation():
    """More features than people: the rotation into their span must change nothing."""
    x, y = separable(60, 300, effect=4.0, seed=1)
    problem = problem_of(y, "accuracy", ("a", "b"))
    train = problem.split.train
    result = fit_head("logistic", x, problem, HeadsConfig(C=(0.01,)))
    scaler = StandardScaler().fit(x[train])
    plain = LogisticRegression(C=0.01, max_iter=5000, tol=1e-8).fit(
        scaler.transform(x[train]), y[train]
    )
    expected = plain.predict_proba(scaler.transform(x))
    np.testing.assert_allclose(result.scores, expected, atol=1e-3)

    problem = problem_of(x[:, 0].astype(float), "mse")
    result = fit_head("ridge", x, problem, HeadsConfig(alpha=(10.0,)))
    train, z = problem.split.train, problem.target.y
    scaler = StandardScaler().fit(x[train])
    plain = Ridge(10.0).fit(scaler.transform(x[train]), z[train])
    np.testing.assert_allclose(result.scores, plain.predict(scaler.transform(x)), atol=1e-3)


def test_test_people_change_nothing(binary):
    """Features and labels of test people may be anything: the fitted head stays the same."""
    x, problem = binary
    changed = x.copy()
    changed[problem.split.test] = 1e3
    for fit in (
        lambda x, p: fit_head("logistic", x, p, HeadsConfig()),
        lambda x, p: lars_grid(x, p, LinearProbeConfig(epochs=3)),
        lambda x, p: published_probe(x, p, LinearProbeConfig(epochs=3, blr=100.0)),
    ):
        y = problem.cohort.y.copy()
        y[problem.split.test] = 1 - y[problem.split.test]
        cohort = dataclasses.replace(problem.cohort, y=y)
        other = dataclasses.replace(
            problem, cohort=cohort, target=make_target(cohort, problem.split)
        )
        first, second = fit(x, problem), fit(changed, other)
        assert first.chosen == second.chosen
        np.testing.assert_allclose(first.linear.weight, second.linear.weight)


def test_hyper_parameters_matter_and_ties_go_to_the_strongest_penalty(binary):
    x, problem = binary
    noise = np.random.default_rng(3).normal(size=x.shape).astype(np.float32)
    assert fit_head("logistic", x, problem, HeadsConfig()).chosen["C"] > 1e-4
    constant = np.ones_like(noise)
    assert fit_head("logistic", constant, problem, HeadsConfig()).chosen["C"] == 1e-5
    age = problem_of(np.arange(100.0), "mse")
    assert fit_head("ridge", constant, age, HeadsConfig(alpha=(1.0, 9.0))).chosen["alpha"] == 9.0


@pytest.mark.parametrize("selection", ["cv", "valid"])
def test_validation_people_pick_the_setting_and_nothing_else(binary, selection):
    x, problem = binary
    config = HeadsConfig(selection=selection, C=(0.1,))
    before = fit_head("logistic", x, problem, config).linear
    changed = x.copy()
    changed[problem.split.valid] = changed[problem.split.valid][::-1]
    after = fit_head("logistic", changed, problem, config).linear
    np.testing.assert_array_equal(before.weight, after.weight)
    np.testing.assert_array_equal(before.bias, after.bias)


def test_a_setting_at_the_edge_of_its_grid_is_noted():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 200)).astype(np.float32)
    problem = problem_of(rng.normal(size=120), "mse")  # nothing to find: the strongest penalty
    edge = fit_head("ridge", x, problem, HeadsConfig(alpha=(1.0, 100.0)))
    assert edge.notes == ("alpha 100 is at the edge of its grid",)
    assert fit_head("ridge", x, problem, HeadsConfig(alpha=(100.0,))).notes == ()
    inside = edge_notes(
        {"blr": 2.0, "weight_decay": 0.0}, {"blr": (1, 2, 3), "weight_decay": (0, 1)}
    )
    assert inside == ()  # no penalty is no edge


@pytest.mark.parametrize("kind", ["logistic", "ridge"])
def test_settings_are_chosen_by_the_score_of_people_not_of_runs(kind):
    """Independent code: cross-validation by hand, of the mean over the three runs of a person."""
    rng = np.random.default_rng(3)
    y = np.arange(60) % 2 if kind == "logistic" else rng.normal(size=60)
    metric, classes = ("auroc", ("F", "M")) if kind == "logistic" else ("mse", ())
    problem = problem_of(y, metric, classes, runs=3)
    people = np.repeat(np.arange(60), 3)
    x = rng.normal(size=(180, 4)).astype(np.float32)
    x[:, 0] += problem.cohort.y + rng.normal(size=60)[people]
    config = HeadsConfig(C=(0.01, 1.0), alpha=(1.0, 300.0))
    train = problem.split.train
    scaled = StandardScaler().fit(x[train]).transform(x[train])
    target = problem.target.y[train]
    means = {}
    for value in config.C if kind == "logistic" else config.alpha:
        scores = []
        for fit, held_out in inner_folds(problem.cohort, train, config.folds, problem.seed):
            if kind == "logistic":
                head = LogisticRegression(C=value, max_iter=5000).fit(scaled[fit], target[fit])
                guess = head.predict_proba(scaled[held_out])[:, 1]
            else:
                guess = Ridge(alpha=value).fit(scaled[fit], target[fit]).predict(scaled[held_out])
            runs = pd.DataFrame(
                {"person": people[train][held_out], "guess": guess, "y": target[held_out]}
            )
            of_person = runs.groupby("person").mean()
            if kind == "logistic":
                scores.append(roc_auc_score(of_person["y"], of_person["guess"]))
            else:
                scores.append(np.square(of_person["y"] - of_person["guess"]).mean())
        means[value] = np.mean(scores)
    chosen = fit_head(kind, x, problem, config).chosen
    best = (max if kind == "logistic" else min)(means, key=means.get)
    assert chosen["C" if kind == "logistic" else "alpha"] == best
    assert chosen["selection_score"] == pytest.approx(means[best], rel=1e-4)


def test_a_solver_that_does_not_converge_says_so(binary, monkeypatch, caplog):
    x, problem = binary
    config = HeadsConfig(C=(1e-3, 1e5))
    assert not any("converge" in note for note in fit_head("logistic", x, problem, config).notes)
    monkeypatch.setattr(estimators, "_MAX_ITERATIONS", 2)
    notes = fit_head("logistic", x, problem, config).notes
    assert "the solver did not converge in 2 iterations" in notes
    assert any("of 10 fits that chose the setting" in note for note in notes)
    assert "did not converge in 2 iterations" in caplog.text


def test_groups_stay_together_in_the_inner_folds():
    """Two runs of a person share a fingerprint that has nothing to do with the class: a
    cross-validation that splits people would prefer the head that memorises it."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 60)
    x = np.repeat(rng.normal(size=(60, 40)), 2, axis=0).astype(np.float32)
    problem = problem_of(y, "accuracy", ("a", "b"), runs=2)
    result = fit_head("knn", x, problem, HeadsConfig(n_neighbors=(1, 21)))
    assert result.chosen["selection_score"] < 0.7


def test_class_weights_and_absent_training_class():
    np.testing.assert_allclose(class_weights(np.array([0, 0, 0, 1]), 2), [4 / 6, 2])
    cohort = make_cohort(np.array([0] * 8 + [1] * 2), classes=("a", "b"))
    with pytest.raises(UserError, match="no training person is in class 'b'"):
        make_target(cohort, Split(np.arange(6), np.array([6, 8]), np.array([7, 9])))
    cohort = make_cohort(np.array([1.0] * 4 + [2.0]))
    with pytest.raises(UserError, match="same target"):
        make_target(cohort, Split(np.arange(3), np.array([3]), np.array([4])))


def test_classes_count_alike_in_every_head_if_so_configured():
    """76 % positives, as in ADNI: unweighted, the others are expected as rarely as they are."""
    rng = np.random.default_rng(0)
    y = (rng.random(400) < 0.76).astype(int)
    x = rng.normal(size=(400, 10)).astype(np.float32)
    x[:, 0] += 0.6 * y
    problem = problem_of(y, "accuracy", ("NC", "MCI"))
    test = problem.split.test
    once = {"epochs": 1, "batch_size": 4, "warmup_epochs": 0}  # no epoch to choose
    for fit in (
        lambda problem: fit_head("logistic", x, problem, HeadsConfig(C=(0.01,))),
        lambda problem: fit_head("knn", x, problem, HeadsConfig(n_neighbors=(20,))),
        lambda problem: lars_grid(
            x, problem, LinearProbeConfig(**once, grid_blr=(3000.0,), grid_weight_decay=(0.0,))
        ),
        lambda problem: published_probe(x, problem, LinearProbeConfig(**once, lr=0.1)),
        lambda problem: attentive_probe(
            x[:, None],
            np.arange(400),
            problem,
            AttentiveProbeConfig(**once, lr=(1e-2,), num_heads=1),
        ),
    ):
        plain, balanced = (
            fit(dataclasses.replace(problem, balanced=weighted)).scores[test, 0]
            for weighted in (False, True)
        )
        assert plain.mean() < 0.4  # towards .24, which they are
        assert 0.43 < balanced.mean() < 0.57


def test_votes_of_neighbours_count_by_the_rarity_of_their_class():
    """By hand: of 5 training people 4 are a; a vote for b counts as much as four for a."""
    x = np.array([[1, 0], [1, 0.1], [1, -0.1], [0, 1], [0.1, 1], [1, 0]], dtype=np.float32)
    cohort = make_cohort(np.array([0, 0, 0, 1, 0, 1]), classes=("a", "b"))
    split = Split(np.arange(5), np.array([5]), np.array([5]))
    problem = Problem(cohort, split, make_target(cohort, split), "accuracy", 0)
    config = HeadsConfig(n_neighbors=(5,), selection="valid")
    for balanced, expected in ((False, [0.8, 0.2]), (True, [0.5, 0.5])):
        result = fit_head("knn", x, dataclasses.replace(problem, balanced=balanced), config)
        np.testing.assert_allclose(result.scores[5], expected)


def test_target_is_z_scored_on_training_people():
    y = np.random.default_rng(0).normal(40, 9, size=50)
    problem = problem_of(y, "mse", runs=2)
    train = problem.split.train
    z = problem.target.y
    assert z[train].mean() == pytest.approx(0, abs=1e-9)
    assert z[train].std() == pytest.approx(1)
    np.testing.assert_allclose(z * problem.target.scale + problem.target.mean, problem.cohort.y)


# --- probes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("regression", [False, True])
def test_the_published_probe_is_that_of_plain_torch_and_timm(binary, regression):
    """Method 8.14: fc_norm, BatchNorm without affine, LARS that leaves the bias to plain SGD."""
    x, problem = binary
    x = 3 * x + np.arange(12, dtype=np.float32)
    if regression:
        problem = problem_of(40 + 9.0 * x[:, 1], "mse")
    blr = 40.0  # rather than .01, at which hardly anything moves
    config = LinearProbeConfig(epochs=5, batch_size=16, blr=blr, min_lr=1e-3)
    result = published_probe(x, problem, config)

    generator = torch.Generator().manual_seed(problem.seed)
    linear = nn.Linear(12, 1 if regression else 2)
    nn.init.trunc_normal_(linear.weight, std=0.01, generator=generator)
    nn.init.zeros_(linear.bias)
    network = nn.Sequential(nn.LayerNorm(12, eps=1e-6), nn.BatchNorm1d(12, 1e-6, affine=False))
    network[0].requires_grad_(False)
    optimizer = Lars(
        [
            {"params": [linear.weight], "always_adapt": True},
            {"params": [linear.bias]},
        ],
        momentum=0.9,
    )
    inputs, y = torch.from_numpy(x), torch.as_tensor(problem.target.y)
    rng = np.random.default_rng(problem.seed)
    train, valid = problem.split.train, problem.split.valid
    steps, peak, step, curve = 5 * (len(train) // 16), blr * 16 / 256, 0, []
    for _ in range(5):
        order = rng.permutation(train)
        network.train()
        for items in order[: len(train) // 16 * 16].reshape(-1, 16):
            step += 1
            lr = 1e-3 + (peak - 1e-3) * 0.5 * (1 + np.cos(np.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = lr
            outputs = linear(network(inputs[items]))
            loss = (
                nn.functional.mse_loss(outputs[:, 0], y[items].float())
                if regression
                else nn.functional.cross_entropy(outputs, y[items])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            outputs = linear(network(inputs))
        scores = outputs[:, 0] if regression else outputs.softmax(dim=1)
        curve.append(scores.double().numpy())
    epoch = int(result.chosen["epoch"])
    np.testing.assert_allclose(result.scores, curve[epoch - 1], rtol=1e-3, atol=1e-4)
    worst = [validation_score(scores[valid], valid, problem) for scores in curve]
    best = min(worst) if regression else max(worst)
    assert worst[epoch - 1] == pytest.approx(best, rel=1e-4)
    assert result.chosen["lr"] == peak


def test_the_published_rates_hardly_move_the_head_and_that_is_said(binary, caplog):
    x, problem = binary
    result = published_probe(x, problem, LinearProbeConfig())
    assert "the published linear probe hardly trained: 50 epochs" in result.notes[0]
    assert result.notes[0] in caplog.text
    assert result.trained_parameters == 12 * 2 + 2
    assert not published_probe(x, problem, LinearProbeConfig(lr=30.0)).notes


def test_one_rate_is_exactly_that_rate(binary):
    x, problem = binary
    for config in (LinearProbeConfig(blr=0.5), LinearProbeConfig(blr=9.0, lr=0.5 * 64 / 256)):
        assert published_probe(x, problem, config).chosen["lr"] == 0.125


def test_lars_grid_equals_heads_trained_alone(binary):
    """A head among others takes the steps that timm's Lars takes on it alone."""
    x, problem = binary
    config = LinearProbeConfig(
        epochs=4, batch_size=16, grid_blr=(1.0, 50.0), grid_weight_decay=(0.0, 0.1), warmup_epochs=1
    )
    trained = {}
    original = probes.LinearHeads.head
    probes.LinearHeads.head = lambda self, k: trained.update(model=self) or original(self, k)
    try:
        lars_grid(x, problem, config)
    finally:
        probes.LinearHeads.head = original

    bn = nn.BatchNorm1d(12, affine=False, eps=1e-6)
    head = nn.Linear(13, 2, bias=False)  # the last feature is constant: the bias
    head.load_state_dict({"weight": probes.LinearHeads(12, 2, 1, problem.seed).weight[0].detach()})
    optimizer = Lars(head.parameters(), momentum=0.9, weight_decay=0.1, always_adapt=True)
    rng = np.random.default_rng(problem.seed)
    train, step = problem.split.train, 0
    for _ in range(4):
        order = rng.permutation(train)
        for i in range(len(train) // 16):
            step += 1
            done = max(0.0, (step - 3) / 9)  # 3 steps of warm-up, 12 in all
            peak = 50.0 * 16 / 256
            lr = peak * (step / 3 if step < 3 else 0.5 * (1 + np.cos(np.pi * done)))
            for group in optimizer.param_groups:
                group["lr"] = lr
            items = order[i * 16 : (i + 1) * 16]
            logits = head(nn.functional.pad(bn(torch.from_numpy(x[items])), (0, 1), value=1.0))
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(problem.cohort.y[items]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(trained["model"].weight[3], head.weight, rtol=1e-4, atol=1e-6)
    assert not torch.equal(trained["model"].weight[1], trained["model"].weight[3])


def test_lars_grid_learns_and_records_its_curve(binary):
    x, problem = binary
    result = lars_grid(x, problem, LARS)
    assert accuracy(result, problem) > 0.8
    assert len(result.history) == 15
    picked = result.history[int(result.chosen["epoch"]) - 1]
    assert picked["valid_balanced_accuracy"] == max(
        row["valid_balanced_accuracy"] for row in result.history
    )
    again = lars_grid(x, problem, LARS)
    np.testing.assert_array_equal(result.scores, again.scores)
    other = lars_grid(x, dataclasses.replace(problem, seed=1), LARS)
    assert not np.array_equal(result.scores, other.scores)


def test_lars_grid_regresses_in_z_units():
    x = np.random.default_rng(0).normal(size=(120, 5)).astype(np.float32)
    problem = problem_of(60 + 9 * x[:, 0], "mse")
    result = lars_grid(x, problem, LARS)
    test = problem.split.test
    assert np.mean((result.scores - problem.target.y)[test] ** 2) < 0.6


def test_attentive_probe_finds_what_the_mean_hides():
    """One token of 12, marked by its first feature, holds the class; the mean over tokens is
    drowned by the eleven others, a query can look at it alone."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    tokens = rng.normal(size=(120, 12, 8)).astype(np.float16)
    tokens[:, :, 0] = 0
    where = rng.integers(0, 12, 120)
    tokens[np.arange(120), where, 0] = 6
    tokens[np.arange(120), where, 1] = 2 * y - 1
    problem = problem_of(y, "accuracy", ("a", "b"))
    config = AttentiveProbeConfig(epochs=15, batch_size=12, lr=(1e-4, 1e-2), num_heads=1)
    result = attentive_probe(tokens, np.arange(120), problem, config)
    assert accuracy(result, problem) > 0.85
    assert result.chosen["lr"] == 1e-2
    pooled = tokens.astype(np.float32).mean(1)
    mean = fit_head("logistic", pooled, problem, HeadsConfig())
    assert accuracy(mean, problem) < accuracy(result, problem) - 0.1


def test_attentive_probe_averages_the_clips_of_an_example():
    rng = np.random.default_rng(0)
    y = np.arange(20) % 2
    tokens = rng.normal(size=(40, 3, 4)).astype(np.float32)
    problem = problem_of(y, "accuracy", ("a", "b"))
    example = np.tile(np.arange(20), 2)
    config = AttentiveProbeConfig(epochs=1, batch_size=8, lr=(1e-3,), warmup_epochs=0)
    result = attentive_probe(tokens, example, problem, config)
    assert result.scores.shape == (20, 2)
    np.testing.assert_allclose(result.scores.sum(1), 1)


def test_validation_score_is_over_units_and_undefined_is_worst():
    problem = problem_of(np.arange(20) % 2, "auroc", ("a", "b"), runs=2)
    zeros = np.flatnonzero(problem.cohort.y == 0)[:4]
    assert validation_score(np.full((4, 2), 0.5), zeros, problem) == -np.inf
    both = np.arange(4)  # two runs of person 0 (class 0), two of person 1 (class 1)
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.5, 0.5]])  # means .45 and .55
    assert validation_score(scores, both, problem) == 1.0
