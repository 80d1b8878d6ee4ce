"""One tidy table of what every run scored, a line for each person: ``results.csv``.

Signal protocols and fingerprints score people themselves and write ``people.csv``; of other tasks
the score of a person is computed here from what was predicted for their runs or events.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from downstream_tasks.features.registry import REGISTRY, Kind
from downstream_tasks.report.comparisons import CHANCE
from downstream_tasks.report.results import RESULTS_FILE
from scripts.ablation.experiment import Task
from scripts.ablation.runs import Run
from src.utils.errors import UserError
from src.utils.files import replacing

RESULTS_TABLE = "results.csv"
PEOPLE_FILE, PREDICTIONS_FILE = "people.csv", "predictions.tsv"
COLUMNS = (
    *("experiment", "arm", "seed", "fold", "data", "task", "variant", "method", "role"),
    *("participant_id", "metric", "value"),
)
# Of metrics of a person, in which less is better.
LESS_IS_BETTER = ("squared_error", "absolute_error", "mse", "mae")


def collect(runs: Sequence[Run], experiment: str, test_people: dict[str, set[str]]) -> pd.DataFrame:
    """The scores of the people that each run tested, of every task that is done.

    ``test_people`` are those of each fold's folder (its path as text). Rows of other people, as
    fingerprinting has them, are left out: models of other folds know them.
    """
    parts = []
    for run in runs:
        for task in run.tasks:
            if run.task_done(task).exists():
                scores = person_scores(run.results_folder(task))
                scores = scores[scores["participant_id"].isin(test_people[str(run.data_dir)])]
                parts.append(_placed(scores, run, task, experiment))
    if not parts:
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)]


def _placed(scores: pd.DataFrame, run: Run, task: Task, experiment: str) -> pd.DataFrame:
    return scores.assign(
        experiment=experiment,
        arm=run.arm.name,
        seed=run.seed,
        fold=run.fold,
        data=run.data.label,
        task=task.label,
    )


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write the table, whole or not at all."""
    with replacing(path) as file:
        table.to_csv(file, index=False, float_format="%.8g")


def person_scores(folder: Path) -> pd.DataFrame:
    """Scores of people in the result folder of an evaluation.

    Columns ``variant``, ``method``, ``role`` (model, untrained, raw or other), ``participant_id``,
    ``metric``, ``value``. What was predicted for a person is averaged over runs of the evaluation
    (its seeds) by averaging their scores.

    Raises:
        UserError: if the folder holds neither table of people nor predictions.
    """
    if (folder / PEOPLE_FILE).exists():
        scores = _stated_scores(pd.read_csv(folder / PEOPLE_FILE, dtype={"participant_id": str}))
    elif (folder / PREDICTIONS_FILE).exists():
        predictions = pd.read_csv(
            folder / PREDICTIONS_FILE,
            sep="\t",
            dtype={"participant_id": str, "target": str, "predicted": str},
            na_values=["n/a"],
            keep_default_na=False,
        )
        scores = _scores_of_predictions(predictions)
    else:
        raise UserError(f"{folder} holds neither {PEOPLE_FILE} nor {PREDICTIONS_FILE}.")
    roles = roles_of_rows(folder)
    return scores.assign(role=[roles.get(name, "other") for name in scores["method"]])


def _stated_scores(people: pd.DataFrame) -> pd.DataFrame:
    """people.csv, a line for each number."""
    keys = [name for name in ("variant", "method", "participant_id") if name in people]
    beside = {"protocol", "seed", "fold", "group", "n"}
    metrics = [
        name
        for name in people.columns
        if name not in (*keys, *beside) and pd.api.types.is_numeric_dtype(people[name])
    ]
    long = people.melt(keys, metrics, var_name="metric", value_name="value")
    if "variant" not in long:
        long["variant"] = ""
    long["variant"] = long["variant"].fillna("").astype(str)
    return _mean(long)


def _mean(scores: pd.DataFrame) -> pd.DataFrame:
    keys = ["variant", "method", "participant_id", "metric"]
    return scores.groupby(keys, sort=False, as_index=False)["value"].mean()


def _scores_of_predictions(predictions: pd.DataFrame) -> pd.DataFrame:
    """Scores of each person by each row in each run of the evaluation, then the mean over runs."""
    table = predictions.assign(method=predictions["method"] + " (" + predictions["head"] + ")")
    keys = ["method", "participant_id", *(k for k in ("seed", "fold", "draw") if k in table)]
    scores = _metrics(table, keys).reset_index()
    metrics = [name for name in scores if name not in keys]
    return _mean(scores.melt(keys, metrics, "metric", "value").assign(variant=""))


def _metrics(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Of the runs or events of each person: a column for each metric, indexed by ``keys``."""
    if "risk" in table:
        raise UserError("a risk is no score of a person: survival tasks cannot be endpoints here.")
    probabilities = [name for name in table if name.startswith("p_")]
    if not probabilities:
        error = table["predicted"].astype(float) - table["target"].astype(float)
        scores = table.assign(squared_error=error**2, absolute_error=error.abs())
        metrics = ["squared_error", "absolute_error"]
        return scores.groupby(keys, sort=False, dropna=False)[metrics].mean()
    table = table.assign(right=(table["predicted"] == table["target"]).astype(float))
    of_classes = table.groupby([*keys, "target"], sort=False, dropna=False)["right"].mean()
    found = {
        "accuracy": table.groupby(keys, sort=False, dropna=False)["right"].mean(),
        "balanced_accuracy": of_classes.groupby(keys, sort=False, dropna=False).mean(),
    }
    if len(probabilities) == 2:
        found["auroc"] = _auroc(table, keys, probabilities[1])
    return pd.DataFrame(found)


def _auroc(table: pd.DataFrame, keys: list[str], column: str) -> pd.Series:
    """Area under the ROC curve of each group, by ranks; NaN where it has one class only."""
    table = table.assign(
        positive=table["target"] == column.removeprefix("p_"),
        rank=table.groupby(keys, sort=False, dropna=False)[column].rank(),
    )
    table["of_positive"] = table["rank"].where(table["positive"], 0.0)
    groups = table.groupby(keys, sort=False, dropna=False)
    n, n_positive = groups.size(), groups["positive"].sum()
    pairs = (n_positive * (n - n_positive)).replace(0, np.nan)
    return (groups["of_positive"].sum() - n_positive * (n_positive + 1) / 2) / pairs


def roles_of_rows(folder: Path) -> dict[str, str]:
    """Name of a row -> what it is: model, untrained, raw (no encoder in it) or other."""
    path = folder / RESULTS_FILE
    if not path.exists():
        return {}
    roles = {}
    for row in json.loads(path.read_text())["rows"]:
        role = role_of(row["kind"], row["representation"])
        for name in (row["name"], f"{row['name']} ({row['head']})", row["representation"]):
            roles[name] = role
    return roles


def role_of(kind: Kind, representation: str) -> str:
    """What a row of a table of results is to a comparison."""
    entry = REGISTRY.get(representation)
    if (entry is not None and entry.untrained) or representation.startswith("untrained."):
        return "untrained"
    if kind == "baseline":
        knows_nothing = entry is not None and entry.reads == "nothing"
        return "other" if knows_nothing or representation == CHANCE else "raw"
    return "model" if kind == "model" else "other"
