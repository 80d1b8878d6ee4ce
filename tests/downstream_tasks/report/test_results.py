"""``results.json`` is written and read in one place, and says when another version wrote it."""

import dataclasses
import json
import math

import pytest

from downstream_tasks.cohort.examples import CohortSummary, Dropped
from downstream_tasks.report.results import (
    RESULTS_FORMAT,
    CheckpointInfo,
    Comparison,
    MethodResult,
    Results,
    RunResult,
    SplitSizes,
)
from src.utils.errors import UserError


@pytest.fixture
def results() -> Results:
    """One of every kind of value, NaN among them."""
    runs = (
        RunResult("seed0", {"auroc": 0.7}, {"blr": 0.1, "kernel": "a"}, ((3, 1), (2, 4))),
        RunResult("seed1", {"auroc": math.nan}),
    )
    model = MethodResult(
        "Brain-JEPA",
        "LARS",
        "model",
        {"auroc": 0.7},
        {"auroc": math.nan},
        {"auroc": (0.6, 0.8)},
        runs,
        representation="model",
        notes=("C 10 is at the edge of its grid",),
        trained_parameters=12,
    )
    fc = dataclasses.replace(model, name="FC", head="logistic", kind="baseline", notes=())
    return Results(
        task="t",
        protocol="linear_probe",
        type="classification",
        target="sex",
        unit="person",
        metrics=("auroc",),
        main_metric="auroc",
        cohort=CohortSummary(9, 8, 9, 12, {"no sex": Dropped(1, ("a",))}, {"F": 4, "M": 5}),
        rows=(model, fc),
        classes=("F", "M"),
        splits=(SplitSizes("seed0", 5, 2, 2),),
        checkpoint=CheckpointInfo("x.pth", sampling={"stride": 3}),
        comparisons=(Comparison(model.label, fc.label, "auroc", 0.1, (-0.1, 0.3)),),
        published={"accuracy": 0.8},
        notes=("9 clips are padded",),
        settings={"time": "every third frame"},
        revision="abc",
    )


def test_what_is_written_is_what_is_read(results, tmp_path):
    results.write(tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    stored = json.loads(text)
    assert stored["format"] == RESULTS_FORMAT == 2
    assert stored["rows"][0]["sd"]["auroc"] is None
    again = Results.read(tmp_path / "results.json")
    assert repr(again) == repr(results)  # NaN is not equal to itself
    assert again.model.label == "Brain-JEPA (LARS)"
    assert again.comparison(again.model, again.fc).difference == 0.1
    assert again.comparison(again.fc, again.model) is None
    assert dataclasses.replace(again, rows=again.rows[1:]).model is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "'format' is 1, this version reads 2"),
        ({"surplus": 1}, "'surplus' is missing or not known"),
        ({"type": "riddle"}, "type: 'riddle' is not what this version writes"),
        ({"metrics": "auroc"}, "metrics: 'auroc' is not what"),
        ({"published": {"accuracy": "much"}}, "published: accuracy: 'much' is not what"),
    ],
)
def test_what_another_version_wrote_is_refused(results, tmp_path, change, message):
    path = tmp_path / "results.json"
    results.write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        Results.read(path)
    stored = json.loads(path.read_text())
    del stored["rows"]
    path.write_text(json.dumps(stored | {"format": 2}))
    with pytest.raises(UserError, match=r"results\.json: '"):
        Results.read(path)
    path.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        Results.read(path)


def test_what_holds_for_several_rows_is_said_once(results):
    model, fc = results.rows
    both = dataclasses.replace(results, rows=(model, dataclasses.replace(fc, notes=model.notes)))
    assert both.all_notes == [
        "9 clips are padded",
        "Brain-JEPA (LARS); FC (logistic): C 10 is at the edge of its grid",
    ]
