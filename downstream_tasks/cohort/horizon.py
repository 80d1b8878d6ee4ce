"""Conversion: a class, or a time to an event, from how long people were followed.

``data.time`` is the time from the scan to the event, or to the last visit of who had none;
``data.event`` says which of the two it is. With ``data.horizon`` (in the unit of the time) people
are of the second class if the event came by then and of the first if they were seen without it up
to then or longer. Who was lost before the horizon without the event is of neither class, and who
had the event before the scan is no case of conversion: both are left out, and counted.

Leaving out those lost to follow-up is right if they are lost for reasons that have nothing to do
with the event. Without a horizon (``data.type: survival``) they stay, as seen for so long without.
"""

import numpy as np
import pandas as pd

from downstream_tasks.config import DataConfig
from downstream_tasks.scoring.survival import signed_times
from src.utils.errors import UserError, nearest

HORIZON_CLASSES = ("no event", "event")  # labels where data.classes gives none
_BEFORE = "the event was before the scan"
_TRUE = {"1", "true", "yes"}
_FALSE = {"0", "false", "no"}


def label_by_horizon(
    table: pd.DataFrame, config: DataConfig, where: str
) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """``table`` with the column ``data.target``, and who was left out, by reason.

    Raises:
        UserError: naming ``where``, on a column that is missing, holds something else than a time
            or an event, or is called as the target.
    """
    table, time, happened, dropped = _followed(table, config, where)
    before = happened & (time <= 0)
    lost = ~happened & (time < config.horizon)
    dropped[_BEFORE] = _people(table[before])
    dropped[f"lost to follow-up before {config.horizon:g}"] = _people(table[lost])
    no_event, event = config.classes or HORIZON_CLASSES
    label = np.where(happened & (time <= config.horizon), event, no_event)
    table = table.assign(**{config.target: label})[~(before | lost)]
    return table.reset_index(drop=True), dropped


def label_by_time(
    table: pd.DataFrame, config: DataConfig, where: str
) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """As :func:`label_by_horizon`, with signed times (``scoring.survival``) as ``data.target``.

    Raises:
        UserError: as there, and if fewer than two had the event.
    """
    table, time, happened, dropped = _followed(table, config, where)
    dropped[_BEFORE] = _people(table[happened & (time <= 0)])
    dropped["not seen after the scan"] = _people(table[~happened & (time <= 0)])
    table = table.assign(**{config.target: signed_times(time, happened)})[time > 0]
    had_it = table.loc[table[config.target] > 0, "participant_id"].nunique()
    if had_it < 2:
        raise UserError(
            f"{where}: {had_it} people had the event after the scan ('{config.event}', data.event; "
            f"'{config.time}', data.time); a risk cannot be learnt and tested from fewer than two."
        )
    return table.reset_index(drop=True), dropped


def _followed(
    table: pd.DataFrame, config: DataConfig, where: str
) -> tuple[pd.DataFrame, pd.Series, pd.Series, dict[str, list[str]]]:
    """Who has a time and an event, both of these, and who has not, by reason."""
    for key, column in (("time", config.time), ("event", config.event)):
        if column not in table:
            raise UserError(
                f"{where} has no column '{column}' (data.{key}).{nearest(column, table.columns)}"
            )
    if config.target in table:
        raise UserError(
            f"{where} has a column '{config.target}' already; data.target names what data.time and "
            "data.event make. Give it another name"
            + (", or leave data.horizon out." if config.horizon else ".")
        )
    known = table[config.time].notna() & table[config.event].notna()
    dropped = {f"no value of {config.time} or {config.event}": _people(table[~known])}
    table = table[known]
    return table, _times(table, config, where), _events(table, config, where), dropped


def _times(table: pd.DataFrame, config: DataConfig, where: str) -> pd.Series:
    time = pd.to_numeric(table[config.time], errors="coerce")
    if (wrong := ~np.isfinite(time)).any():
        first = table.loc[wrong.idxmax()]
        raise UserError(
            f"{where}: '{config.time}' must be a time since the scan; it is "
            f"'{first[config.time]}' for {first['participant_id']}."
        )
    return time


def _events(table: pd.DataFrame, config: DataConfig, where: str) -> pd.Series:
    text = table[config.event].map(lambda value: f"{value:g}" if _is_number(value) else str(value))
    text = text.str.lower()
    if (wrong := ~text.isin(_TRUE | _FALSE)).any():
        first = table.loc[wrong.idxmax()]
        raise UserError(
            f"{where}: '{config.event}' must say whether the event was seen, 1 or 0; it is "
            f"'{first[config.event]}' for {first['participant_id']}."
        )
    return text.isin(_TRUE)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _people(table: pd.DataFrame) -> list[str]:
    return table["participant_id"].drop_duplicates().tolist()
