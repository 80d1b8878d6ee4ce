"""The runs of an evaluation: their names, and what they are to each other."""

import numpy as np

from downstream_tasks.cohort.problem import Problem, Target, study_design
from downstream_tasks.cohort.splits import Split
from downstream_tasks.scoring.design import Design
from tests.downstream_tasks.conftest import make_cohort


def problem(train, test, seed=0, fold=None, runs=1):
    cohort = make_cohort(np.arange(10.0), runs=runs)
    examples = np.arange(10 * runs).reshape(10, runs)
    split = Split(examples[train].ravel(), np.array([], int), examples[test].ravel())
    return Problem(cohort, split, Target(cohort.y), "mse", seed, fold)


def test_a_run_is_named_by_its_seed_and_fold():
    assert problem([0], [1], seed=3).name == "seed3"
    assert problem([0], [1], seed=3, fold=2).name == "seed3_fold2"


def test_the_design_follows_from_the_test_people():
    same = [problem([0, 1, 2], [3, 4], seed) for seed in range(2)]
    assert study_design(same) == Design("one_split", 3, 2)
    new = [problem([0, 1, 2], [3, 4], 0), problem([0, 1, 4, 5], [3, 2], 1)]
    assert study_design(new) == Design("resampled", 3.5, 2)
    folds = [problem([0, 1, 2], [3, 4], 0, 0, runs=2), problem([3, 4], [0, 1, 2], 0, 1, runs=2)]
    assert study_design(folds) == Design("folds", 2.5, 2.5)  # people, not runs
    assert study_design(folds[:1]).kind == "folds"
