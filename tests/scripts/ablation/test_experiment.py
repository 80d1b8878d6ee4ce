"""The experiment file: arms, grids, and mistakes that are found before anything is trained."""

import re

import pytest

from scripts.ablate import chosen, parse_arguments
from scripts.ablation.experiment import plan_from_dict, read_experiment
from scripts.ablation.laboratory import Laboratory
from src.utils.errors import UserError

NEEDED = {"name": "x", "pretrain": "p.yaml", "data": "data/people", "evaluate": "task"}


def plan(**values):
    return plan_from_dict(NEEDED | values, "file")


def test_an_arm_is_like_another_and_says_what_differs():
    arms = {
        "a": {"meta.add_w": "origin", "steps": 100},
        "b": {"like": "a", "meta.depth": 4},
        "c": {"like": "b", "meta.depth": 5, "steps": 7},
        "d": None,
    }
    found = {arm.name: (dict(arm.overrides), arm.steps) for arm in plan(arms=arms, steps=50).arms}
    assert found == {
        "a": ({"meta.add_w": "origin"}, 100),
        "b": ({"meta.add_w": "origin", "meta.depth": 4}, 100),
        "c": ({"meta.add_w": "origin", "meta.depth": 5}, 7),
        "d": ({}, 50),
    }


def test_a_grid_is_every_combination_under_names_of_its_values():
    grid = {"meta.add_w": ["origin", "mapping"], "optimization.ema": [[0.9, 1.0], [0.99, 1.0]]}
    found = {arm.name: dict(arm.overrides) for arm in plan(grid=grid).arms}
    assert list(found) == [
        "add_w=origin,ema=0.9-1.0",
        "add_w=origin,ema=0.99-1.0",
        "add_w=mapping,ema=0.9-1.0",
        "add_w=mapping,ema=0.99-1.0",
    ]
    assert found["add_w=mapping,ema=0.9-1.0"] == {
        "meta.add_w": "mapping",
        "optimization.ema": [0.9, 1.0],
    }


def test_arms_that_differ_in_one_number_have_an_axis():
    steps = plan(arms={"a": {"steps": 10}, "b": {"steps": 100}})
    assert steps.axis == ("steps", {"a": 10, "b": 100})
    assert plan(grid={"meta.depth": [2, 4]}).axis == ("meta.depth", {"depth=2": 2, "depth=4": 4})
    assert plan(grid={"meta.add_w": ["origin", "mapping"]}).axis is None
    assert plan(grid={"meta.depth": [2, 4], "optimization.lr": [0.1, 0.2]}).axis is None
    assert plan(arms={"a": None}).axis is None


ENDPOINT = {"task": "task", "metric": "r2", "against": "untrained"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give either arms (a name and overrides for each) or grid"),
        ({"arms": {"a": None}, "grid": {"meta.depth": [1]}}, "give either arms"),
        ({"arms": {"a": {"meta.add_v": 1}}}, "no key 'meta.add_v' of pretraining. Did you mean"),
        ({"arms": {"a": {"meta.seed": 1}}}, "meta.seed is set for every run by the laboratory"),
        (
            {"arms": {"a": {"like": "b"}, "bb": None}},
            "arm a is like 'b', no arm. Did you mean 'bb'",
        ),
        ({"arms": {"a": {"like": "b"}, "b": {"like": "a"}}}, "in a circle"),
        ({"arms": {"a/b": None}}, "arm 'a/b': letters, digits"),
        ({"arms": {"a": {"steps": 0}}}, "steps is 0; allowed: a whole number"),
        ({"arms": {"a": {"steps": 9, "optimization.epochs": 3}}}, "Give one of the two"),
        ({"arms": {"a": "depth"}}, "arm a is 'depth'; keys such as"),
        ({"grid": {"meta.depth": 3}}, "grid meta.depth is 3; allowed: a list of values"),
        ({"arms": {"a": None}, "sedes": [1]}, "unknown key 'sedes'"),
        ({"arms": {"a": None}, "seeds": [1, 1]}, "seeds holds a number twice"),
        ({"arms": {"a": None}, "stage": "tune"}, "stage is 'tune'; allowed: choose, report"),
        ({"arms": {"a": None}, "data": []}, "data is empty"),
        ({"arms": {"a": None}, "data": ["d", "x/d"]}, "data holds 'd' twice"),
        ({"arms": {"a": None}, "evaluate": [{"tsk": "t"}]}, "evaluate 1: unknown key 'tsk'"),
        ({"arms": {"a": None}, "endpoints": [ENDPOINT | {"task": "tsk"}]}, "Did you mean 'task'"),
        ({"arms": {"a": None}, "endpoints": [ENDPOINT | {"against": "arm b"}]}, "none of a."),
        ({"arms": {"a": None}, "endpoints": [{"task": "task", "metric": "r2"}]}, "'against' is"),
    ],
)
def test_a_mistake_is_named(values, message):
    with pytest.raises(UserError, match=re.escape(message)):
        plan(**values)


def test_a_value_that_an_arm_cannot_have_is_found_before_anything_is_written(
    write_experiment, tmp_path
):
    path = write_experiment(arms={"a": {"meta.depth": 0}}, endpoints=[])
    with pytest.raises(UserError, match=r"arm a: meta.depth is 0; allowed: a whole number >= 1"):
        Laboratory.open(read_experiment(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_shape_of_the_data_is_checked_first(write_experiment, tmp_path):
    path = write_experiment(arms={"a": {"data.crop_size": [9, 64]}}, endpoints=[])
    with pytest.raises(UserError, match=r"has 9 ROIs, .* has 26. Say so for this data set"):
        Laboratory.open(read_experiment(path), tmp_path / "out")


def test_runs_are_picked_by_name(write_experiment, tmp_path):
    lab = Laboratory.open(read_experiment(write_experiment(folds=2, seeds=[0, 3])), tmp_path / "o")
    assert len(chosen(lab.runs, [])) == 8
    names = [run.name for run in chosen(lab.runs, ["deep/seed3*", "*/seed0_fold1"])]
    assert names == [
        "shallow/seed0_fold1",
        "deep/seed0_fold1",
        "deep/seed3_fold0",
        "deep/seed3_fold1",
    ]
    with pytest.raises(UserError, match="no run is called deep; there are shallow/seed0_fold0"):
        chosen(lab.runs, ["deep"])


def test_overrides_after_a_list_of_devices_are_overrides():
    parsed = parse_arguments(["e.yaml", "--devices", "cpu", "cpu", "steps=9", "folds=2"])
    assert parsed.devices == ["cpu", "cpu"]
    assert parsed.overrides == ["steps=9", "folds=2"]
    assert parsed.jobs == 2
