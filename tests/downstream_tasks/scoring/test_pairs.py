"""Pairs of one person against pairs of two."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from downstream_tasks.scoring.pairs import compare_pairs, score_pairs, score_people


def matrices(signal: float, n: int = 12, seed: int = 0, ties: bool = False) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    found = [rng.normal(size=(n, n)) + signal * np.eye(n) for _ in range(3)]
    return [one.round(0) for one in found] if ties else found


def auc(similarity: np.ndarray) -> float:
    return roc_auc_score(np.eye(len(similarity)).ravel(), similarity.ravel())


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_score_and_what_it_is_without_each_family(ties, size):
    found, families = matrices(1.0, ties=ties), np.arange(12) // size
    scores = score_pairs(found, families)
    assert scores.auc == pytest.approx(np.mean([auc(one) for one in found]))
    for c, without in enumerate(scores.without):
        kept = np.flatnonzero(families != c)
        expected = np.mean([auc(one[np.ix_(kept, kept)]) for one in found])
        assert without == pytest.approx(expected)


def test_the_score_of_a_person_is_over_pairs_of_theirs():
    found, n = matrices(1.0, ties=True), 12
    expected = np.zeros(n)
    for similarity in found:
        for i in range(n):
            of_two = [(i, j) for j in range(n) if j != i] + [(j, i) for j in range(n) if j != i]
            less = [similarity[pair] < similarity[i, i] for pair in of_two]
            ties = [similarity[pair] == similarity[i, i] for pair in of_two]
            expected[i] += (np.sum(less) + np.sum(ties) / 2) / len(of_two) / len(found)
    np.testing.assert_allclose(score_people(found), expected)
    assert np.isnan(score_people([np.ones((1, 1))])).all()


def test_a_difference_is_judged_by_the_pseudo_values_of_people():
    good, bad, people = matrices(2.0), matrices(0.5, seed=1), np.arange(12)
    a, b = score_pairs(good, people), score_pairs(bad, people)
    found = compare_pairs(a, b)
    assert found.difference == pytest.approx(a.auc - b.auc)
    pseudo = 12 * (a.auc - b.auc) - 11 * (a.without - b.without)
    half = stats.t.ppf(0.975, 11) * stats.sem(pseudo)
    assert found.p == pytest.approx(2 * stats.t.sf(found.difference / stats.sem(pseudo), 11))
    assert np.diff(found.interval).item() == pytest.approx(2 * half)
    low, high = a.interval()
    assert low < a.auc < high <= 1


def test_intervals_cover():
    """Populations of 20 people: about 95 % of the intervals hold the AUC of very many people."""
    true = stats.norm.cdf(1 / np.sqrt(2))
    held = 0
    for seed in range(200):
        low, high = score_pairs(matrices(1.0, 20, seed)[:1], np.arange(20)).interval()
        held += low <= true <= high
    assert 186 <= held <= 200


def test_alike_and_perfect_scores():
    constant = score_pairs([np.zeros((5, 5))], np.arange(5))
    assert constant.auc == 0.5
    perfect = score_pairs([np.eye(5)], np.arange(5))
    low, high = perfect.interval()
    assert low < 0.8
    assert perfect.auc == high == 1
    assert np.isnan(compare_pairs(perfect, perfect).p)
    assert np.isnan(score_pairs([np.eye(2)], np.arange(2)).without).all()
