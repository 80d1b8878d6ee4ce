"""The first table of imputation and forecast, and its sentence."""

import pytest

from downstream_tasks.cohort.examples import CohortSummary
from downstream_tasks.report.markdown import results_markdown
from downstream_tasks.report.results import CheckpointInfo, Comparison, MethodResult, Results
from downstream_tasks.report.signal import PICKED_IN_TRAINING, signal_summary

ROWS = {  # name: title, kind, R2
    "model.predictor": ("Brain-JEPA", "model", 0.4),
    "model.both": ("Brain-JEPA", "readout", 0.41),
    "ar+model": ("AR + Brain-JEPA", "joint", 0.5),
    "mean": ("Mean of each ROI", "baseline", -1e-9),
    "ar": ("AR", "baseline", 0.45),
    "untrained.predictor": ("Untrained networks", "baseline", 0.2),
    "ar+untrained": ("AR + untrained networks", "control", 0.45),
}


def results(trained: float, alone: float, added: float, seen: int | None = 0) -> Results:
    """Ten people; each difference with an interval of +-.01, and p as that says."""
    rows = {
        name: MethodResult(
            title,
            name.partition(".")[2] or "ridge",
            kind,
            {"r2": r2, "pearson": r2},
            {"r2": 0.1, "pearson": 0.1},
            {"r2": (r2 - 0.02, r2 + 0.02), "pearson": (r2, r2)},
            (),
            representation=name,
        )
        for name, (title, kind, r2) in ROWS.items()
    }

    def compared(one: str, other: str, difference: float, test: str = "") -> Comparison:
        p = 0.001 if abs(difference) > 0.01 else 0.5
        interval = (difference - 0.01, difference + 0.01)
        labels = (rows[one].label, rows[other].label)
        gain = {"p_adjusted": 2 * p, "n_gain": 8, "n_people": 10}
        return Comparison(*labels, "r2", difference, interval, p, test, **gain)

    return Results(
        task="demo",
        protocol="forecast",
        type="signal",
        target="hidden signal",
        unit="person",
        metrics=("r2", "pearson"),
        main_metric="r2",
        cohort=CohortSummary(30, 30, 10, 60),
        rows=tuple(rows.values()),
        comparisons=(
            compared("model.predictor", "untrained.predictor", trained),
            compared("model.predictor", "ar", alone, PICKED_IN_TRAINING),
            compared("ar+model", "ar", added),
        ),
        checkpoint=CheckpointInfo(test_people_in_pretraining=seen),
    )


def test_the_table_is_short_and_says_who_gains():
    text = signal_summary(results(0.2, -0.05, 0.05))
    table = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0][0] == "Hidden signal of 10 people by"
    assert [line[0] for line in cells[2:]] == [
        *("**Brain-JEPA**", "Untrained networks", "Mean of each ROI", "AR", "AR + Brain-JEPA")
    ]
    assert cells[3][3:] == ["+0.200 (0.190 to 0.210)", "8 of 10", "0.002"]
    assert cells[4][1:] == ["0.000", "-0.020 to 0.020", "", "", ""]
    assert cells[5][3] == "-0.050 (-0.060 to -0.040)"
    assert cells[6][3] == "+0.050 (0.040 to 0.060)"
    assert results_markdown(results(0.2, -0.05, 0.05)).index(text) < 40


@pytest.mark.parametrize(
    ("found", "sentences"),
    [
        (
            (0.2, -0.05, 0.05),
            ("Pretraining taught", "people whom it never saw; alone it predicts less than AR,"),
        ),
        ((0.2, 0.05, 0.05), ("alone it predicts more than AR", "its features add to that")),
        (
            (0.0, 0.0, 0.0),
            ("It is not shown that pretraining taught", "what cannot be told apart from AR"),
        ),
        ((-0.2, -0.3, 0.0), ("less about the signal", "features are not shown to add to that")),
        ((0.2, 0.05, -0.05), ("its features take from that",)),
    ],
)
def test_the_sentence_says_what_the_comparisons_say(found, sentences):
    text = signal_summary(results(*found))
    assert all(sentence in text for sentence in sentences)
    assert text.count("What this means") == 1
    assert "nothing of traits, states or diseases" in text


@pytest.mark.parametrize("seen", [None, 3])
def test_people_are_called_unseen_only_where_that_is_known(seen):
    assert "never saw" not in signal_summary(results(0.2, 0.05, 0.05, seen))


def test_an_interval_above_0_is_not_enough_where_p_is_not():
    whole = results(0.2, 0.05, 0.05)
    first = whole.comparisons[0]
    doubtful = Comparison(**{**vars(first), "p_adjusted": 0.2})
    text = signal_summary(
        Results(**{**vars(whole), "comparisons": (doubtful, *whole.comparisons[1:])})
    )
    assert "It is not shown that pretraining taught" in text
