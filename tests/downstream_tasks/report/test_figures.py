"""The figure of a result folder shows what the report says, of the test people."""

import dataclasses
import typing
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from downstream_tasks.cohort.examples import Cohort, CohortSummary
from downstream_tasks.cohort.problem import Problem, make_target
from downstream_tasks.cohort.splits import Split
from downstream_tasks.config_checks import task_from_dict
from downstream_tasks.features.registry import REGISTRY, Kind
from downstream_tasks.heads.result import FittedMethod, HeadResult
from downstream_tasks.report import figures, forest
from downstream_tasks.report.results import CheckpointInfo, MethodResult, Results
from downstream_tasks.report.write import write_report
from tests.downstream_tasks.conftest import make_cohort

TRAIN, TEST = np.arange(20), np.arange(20, 40)
SPLIT = Split(train=TRAIN, valid=np.array([], dtype=np.int64), test=TEST)


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """A function that draws scores of one run and returns the panels."""
    figures_drawn: list[Figure] = []
    save = figures.save_figure

    def keep(figure: Figure, path: Path) -> None:
        figures_drawn.append(figure)
        save(figure, path)

    monkeypatch.setattr(figures, "save_figure", keep)

    def panels(cohort: Cohort, scores: np.ndarray) -> list[Axes]:
        problem = Problem(cohort, SPLIT, make_target(cohort, SPLIT), "accuracy", 0)
        row = FittedMethod("Brain-JEPA", "ridge", "model", [HeadResult(scores, {})])
        config = task_from_dict(
            {
                "data": {
                    "data_path": "x",
                    "target": "age",
                    "target_unit": "years",
                    "type": "classification" if cohort.is_classification else "regression",
                },
                "evaluation": {"n_exchanges": 20},
            },
            "test",
        )
        problem = dataclasses.replace(problem, metric=config.metric)
        write_report(tmp_path, config, cohort, [problem], [row], CheckpointInfo())
        assert (tmp_path / "figure.png").stat().st_size > 0
        assert (tmp_path / "figure.svg").stat().st_size > 0
        return figures_drawn[-1].axes[1:]

    return panels


def scores_of(guess: np.ndarray) -> np.ndarray:
    """Scores of two classes that say ``guess``."""
    return np.stack([1.0 - guess, guess], axis=1)


def test_the_figure_is_about_the_test_people(draw):
    """They are told apart without a mistake, and the training people always mistaken."""
    y = np.arange(40) % 2
    guess = np.where(np.isin(np.arange(40), TEST), y, 1 - y)
    roc, confusion, _ = draw(make_cohort(y, classes=("F", "M")), scores_of(guess))
    rate = roc.lines[0].get_ydata()
    assert rate[0] == 0.0
    assert (rate[1:] == 1.0).all()
    texts = [text.get_text() for text in confusion.texts]
    assert texts == ["1.00\n(10)", "0.00\n(0)", "0.00\n(0)", "1.00\n(10)"]


def test_confusion_is_in_shares_of_each_true_class(draw):
    """Of 15 women 9 are taken for men, and of 5 men 4."""
    y = np.r_[np.arange(20) % 2, np.zeros(15, int), np.ones(5, int)]
    guess = np.r_[np.zeros(20, int), np.zeros(6, int), np.ones(9, int), 0, np.ones(4, int)]
    _, confusion, _ = draw(make_cohort(y, classes=("F", "M")), scores_of(guess))
    texts = [text.get_text() for text in confusion.texts]
    assert texts == ["0.40\n(6)", "0.60\n(9)", "0.20\n(1)", "0.80\n(4)"]


def test_reliability_is_of_the_test_people(draw):
    """Certain and right about ten men, said .25 of ten women, of whom none is a man."""
    y = np.arange(40) % 2
    guess = np.where(np.isin(np.arange(40), TEST), np.where(y == 1, 1.0, 0.25), 0.5)
    *_, reliability = draw(make_cohort(y, classes=("F", "M")), scores_of(guess))
    _, curve = reliability.lines  # the diagonal, the model
    np.testing.assert_allclose(curve.get_xdata(), [0.25, 1.0])
    np.testing.assert_allclose(curve.get_ydata(), [0.0, 1.0])
    assert reliability.get_title() == "Reliability, probability of M"


def test_a_scatter_is_in_the_targets_own_unit(draw):
    y = np.linspace(20.0, 80.0, 40)
    z = (y - y[TRAIN].mean()) / y[TRAIN].std()
    (scatter,) = draw(make_cohort(y), z)
    points = scatter.collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 0], y[TEST])
    np.testing.assert_allclose(points[:, 1], y[TEST])


def test_the_forest_plot_has_every_row_and_says_what_qualifies_them(tmp_path, monkeypatch):
    spread = {"mse": (0.5, 0.9)}
    rows = (
        MethodResult("Brain-JEPA", "ridge", "model", {"mse": 0.7}, {"mse": 0.1}, spread, ()),
        MethodResult("FC", "ridge", "baseline", {"mse": 0.6}, {"mse": 0.1}, spread, ()),
        MethodResult(
            *(
                "Mean",
                "none",
                "baseline",
                {"mse": 1.0},
                {"mse": 0.0},
                {"mse": (np.nan, np.nan)},
                (),
            ),
            representation="majority",
        ),
        MethodResult(
            "A name " + "that goes on " * 9 + "to 7",
            *("h", "control", {"mse": np.nan}, {"mse": np.nan}, spread, ()),
            notes=("alpha 1 is at the edge of its grid",),
        ),
    )
    results = Results(
        task="t",
        protocol="ridge",
        type="regression",
        target="age",
        unit="person",
        metrics=("mse",),
        main_metric="mse",
        cohort=CohortSummary(3, 3, 3, 3),
        rows=rows,
        notes=("3 of 9 runs are shorter than a clip",),
    )
    kept = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: kept.append(figure))
    figures.draw_table(tmp_path, results)
    (axes,) = kept[0].axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert [label for label in labels if "(" in label][:3] == [row.label for row in rows[:3]]
    assert labels[-1].endswith("to 7 (h)")
    assert len(labels[-1]) < 70
    assert [text.get_text() for text in axes.texts] == ["0.700", "0.600", "1.000", "n/a"]
    vertical = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert vertical[0].get_xdata()[0] == 1.0
    notes = kept[0].subfigs[-1].get_supxlabel()
    assert "3 of 9 runs are shorter" in notes
    assert "alpha 1 is at the edge of its grid" in notes


def test_a_scatter_names_target_unit_r_and_mae(draw):
    y = np.linspace(20.0, 80.0, 40)
    z = (y - y[TRAIN].mean()) / y[TRAIN].std()
    (scatter,) = draw(make_cohort(y), z)
    assert scatter.get_xlabel() == "true age (years)"
    assert "r 1.00, MAE" in scatter.get_title()
    assert "20 people" in scatter.get_title()


def test_the_forest_plot_has_a_place_for_rows_of_every_kind():
    """A kind without one would leave its rows out, a baseline with the model among them."""
    assert {*forest.KINDS} == {*typing.get_args(Kind)}


def test_names_of_controls_are_whole_in_the_forest_plot():
    for entry in REGISTRY.values():
        label = f"{entry.title} (published LARS probe)"
        if entry.is_control:
            assert forest.shortened(label, forest._LABEL_WIDTH) == label
