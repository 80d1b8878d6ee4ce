"""Conversion within a horizon: who is a case, who is none, and of whom one does not know."""

import pandas as pd
import pytest

from downstream_tasks.cohort.horizon import label_by_horizon, label_by_time
from downstream_tasks.config import DataConfig
from src.utils.errors import UserError

TABLE = pd.DataFrame(
    {
        "participant_id": ["early", "at", "late", "stable", "just", "lost", "before", "unknown"],
        "days": [100, 365, 366, 900, 365, 364, 0, None],
        "converted": [1, 1, 1, 0, 0, 0, 1, 1],
    }
)
KEYS = {"target": "conversion", "time": "days", "event": "converted", "horizon": 365.0}


def test_who_is_a_case_by_hand():
    table, dropped = label_by_horizon(TABLE, DataConfig(**KEYS), "t")
    assert dict(zip(table["participant_id"], table["conversion"], strict=True)) == {
        "early": "event",
        "at": "event",
        "late": "no event",  # converted later: without the event at the horizon
        "stable": "no event",
        "just": "no event",  # seen without it up to the horizon
    }
    assert dropped == {
        "no value of days or converted": ["unknown"],
        "the event was before the scan": ["before"],
        "lost to follow-up before 365": ["lost"],
    }


def test_classes_name_the_two():
    config = DataConfig(**KEYS, classes=("stable", "converter"))
    table, _ = label_by_horizon(TABLE, config, "t")
    assert set(table["conversion"]) == {"stable", "converter"}
    assert table.set_index("participant_id").loc["early", "conversion"] == "converter"


@pytest.mark.parametrize("values", [["yes", "no"], [True, False], ["1", "0"], [1.0, 0.0]])
def test_events_as_tables_spell_them(values):
    table = TABLE[:7].assign(converted=[values[1 - v] for v in TABLE["converted"][:7]])
    expected, _ = label_by_horizon(TABLE[:7], DataConfig(**KEYS), "t")
    found, _ = label_by_horizon(table, DataConfig(**KEYS), "t")
    assert found["conversion"].tolist() == expected["conversion"].tolist()


@pytest.mark.parametrize(
    ("changes", "columns", "message"),
    [
        ({"time": "dayz"}, {}, r"no column 'dayz' \(data.time\). Did you mean 'days'\?"),
        ({"target": "days"}, {}, "column 'days' already"),
        ({}, {"days": "soon"}, "'days' must be a time since the scan; it is 'soon' for early"),
        ({}, {"converted": 2}, "'converted' must say .* it is '2' for early"),
    ],
)
def test_mistakes_name_the_column_and_the_person(changes, columns, message):
    with pytest.raises(UserError, match=message):
        label_by_horizon(TABLE.assign(**columns), DataConfig(**(KEYS | changes)), "t")


def test_times_to_an_event_by_hand():
    config = DataConfig(type="survival", target="conversion", time="days", event="converted")
    zero = TABLE.iloc[[6]].assign(participant_id="unseen", converted=0)
    table, dropped = label_by_time(pd.concat([TABLE, zero]), config, "t")
    assert dict(zip(table["participant_id"], table["conversion"], strict=True)) == {
        "early": 100,
        "at": 365,
        "late": 366,
        "stable": -900,  # seen without it for so long
        "just": -365,
        "lost": -364,
    }
    assert {reason: names for reason, names in dropped.items() if names} == {
        "no value of days or converted": ["unknown"],
        "the event was before the scan": ["before"],
        "not seen after the scan": ["unseen"],
    }
    with pytest.raises(UserError, match="0 people had the event after the scan"):
        label_by_time(TABLE.assign(converted=0), config, "t")
