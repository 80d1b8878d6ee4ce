"""What a study with known truth found: tables, fitted exponents, and a figure.

    python scripts/ablate.py configs/experiments/known_truth.yaml          # runs; again: goes on
    python scripts/known_truth.py output_dirs/experiments/known_truth      # this, at any time

It reads the runs that are done, and writes known_truth.md, .tsv and .png into the folder.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from downstream_tasks.features.registry import MODEL_NAME
from downstream_tasks.report.cells import markdown_table
from downstream_tasks.report.results import RESULTS_FILE
from downstream_tasks.studies.learning_curve import TABLE_FILE as CURVE_FILE
from scripts.ablation.experiment import Task
from scripts.ablation.laboratory import Laboratory
from scripts.ablation.runs import Run
from scripts.ablation.statistics import paired
from scripts.ablation.table import person_scores
from src.datasets.folder import DataFolder
from src.datasets.prepare.known_truth import LATENT, TRAITS
from src.utils.curves import save_figure
from src.utils.errors import UserError, run_main
from src.utils.files import replacing, write_text
from src.utils.power_law import PowerLaw, fit_power_law

SIGNAL = ("imputation", "forecast")
ORACLE = "Oracle: the latent"
# Okabe and Ito's palette, which colour-blind readers tell apart.
COLORS = {"model": "#0072b2", "untrained": "#d55e00", "FC": "#000000", "raw": "#009e73"}
SIZES = {"people": "people of the pretraining", "steps": "steps", "labelled": "labelled people"}


def collect(lab: Laboratory) -> pd.DataFrame:
    """Every score: ``people`` and ``steps`` of the pretraining, ``seed``, ``task``, ``method``,
    ``role``, ``labelled`` people (NaN: all), ``r2``, ``r``, and ``low`` and ``high``: the interval
    over people of the model's gain in squared error (of a signal: R2) over the untrained copy.
    """
    lines = []
    for run in lab.runs:
        for task in run.tasks:
            if run.task_done(task).exists():
                read = _signal_lines if task.label in SIGNAL else _trait_lines
                of_run = {"people": len(lab.folds[run.data.label][0].people("train"))}
                of_run |= {"steps": run.total_steps, "seed": run.seed, "task": task.label}
                lines += [of_run | line for line in read(run, task)]
    if not lines:
        raise UserError(f"{lab.out}: no task of any run is done yet. Go on: scripts/ablate.py")
    return pd.DataFrame(lines)


def _signal_lines(run: Run, task: Task) -> list[dict]:
    """Networks are read out of the predictor; what is read out of the encoder too is left out."""
    scores = person_scores(run.results_folder(task))
    role_of = {"model.predictor": "model", "untrained.predictor": "untrained"}
    raw = {name: "raw" for name in scores["method"] if "." not in name}
    scores["role"] = scores["method"].map(role_of | raw)
    gain = _gain(scores[scores["metric"] == "r2"], sign=1)
    table = scores.pivot_table(index=["method", "role"], columns="metric", values="value")
    return [
        {"method": method, "role": role, "r2": row["r2"], "r": row["r"]}
        | (gain if role == "model" else {})
        for (method, role), row in table.iterrows()
    ]


def _trait_lines(run: Run, task: Task) -> list[dict]:
    folder = run.results_folder(task)
    scores = person_scores(folder)
    gain = _gain(scores[scores["metric"] == "squared_error"], sign=-1)
    role_of = dict(zip(scores["method"], scores["role"], strict=True))
    rows = pd.read_json((folder / RESULTS_FILE).open(), typ="series")["rows"]
    lines = []
    for row in rows:
        label = f"{row['name']} ({row['head']})"
        role = role_of.get(label, "other")
        line = {"method": row["name"], "role": role, "r2": row["mean"]["r2"]}
        line["r"] = row["mean"].get("pearson")  # none of a constant
        lines.append(line | (gain if role == "model" else {}))
    curve = pd.read_csv(folder / CURVE_FILE, sep="\t")
    for (method, head, people), part in curve.groupby(["method", "head", "people"]):
        role = role_of.get(f"{method} ({head})", "other")
        lines.append({"method": method, "role": role, "labelled": people, "r2": part["r2"].mean()})
    lines.append({"method": ORACLE, "role": "oracle"} | oracle(run.asked(task)["data"], task.label))
    return lines


def oracle(data: dict, trait: str) -> dict[str, float]:
    """Scores of the best predictor there can be, the trait's latent, among the same people."""
    runs = DataFolder(data["data_path"]).runs.drop_duplicates("participant_id")
    r = np.corrcoef(runs[trait].astype(float), runs[trait + LATENT].astype(float))[0, 1]
    return {"r2": float(r**2), "r": float(r)}


def _gain(scores: pd.DataFrame, sign: int) -> dict[str, float]:
    """Interval over people of what the model is better by than its untrained copy."""
    by_person = scores.pivot_table(index="participant_id", columns="role", values="value")
    if not {"model", "untrained"} <= set(by_person):
        return {}
    by_person = by_person.dropna(subset=["model", "untrained"])
    model, untrained = (sign * by_person[role].to_numpy() for role in ("model", "untrained"))
    # Simulated people have no families: each is a group.
    found = paired(model, untrained, by_person.index.to_numpy())
    return {"low": found.low, "high": found.high}


# --- fits -----------------------------------------------------------------------------------------


def fits(table: pd.DataFrame) -> list[tuple[str, str, str, PowerLaw]]:
    """Power laws of the model's R2: (task, over what, at what, the law).

    Traits have the oracle's R2 as their ceiling; that of a signal is fitted.
    """
    found = []
    for task, part in table.groupby("task", sort=False):
        top = part.loc[part["role"] == "oracle", "r2"]
        ceiling = float(top.iloc[0]) if len(top) else None
        model = part[part["role"] == "model"]
        everyone = model[model["labelled"].isna()] if "labelled" in model else model
        for over, at in (("people", "steps"), ("steps", "people")):
            for value, rows in everyone.groupby(at):
                law = fit_power_law(rows[over], rows["r2"], ceiling)
                found.append((task, SIZES[over], f"{value} {SIZES[at]}", law))
        few = model[model["labelled"].notna()] if "labelled" in model else model[:0]
        for (people, steps), rows in few.groupby(["people", "steps"]):
            law = fit_power_law(rows["labelled"], rows["r2"], ceiling)
            found.append((task, SIZES["labelled"], f"{people} people, {steps} steps", law))
    return found


# --- report ---------------------------------------------------------------------------------------


def markdown(table: pd.DataFrame, laws: Sequence[tuple[str, str, str, PowerLaw]]) -> str:
    """R2 by size, rows that need no pretraining, where it pays, and the fits."""
    everyone = table[table["labelled"].isna()] if "labelled" in table else table
    tasks = [task for task in (*TRAITS, *SIGNAL) if task in set(table["task"])]
    lines = [
        "# A study with known truth",
        "",
        "R2 of people in no pretraining, mean over seeds. In brackets: pretrained - untrained, the "
        "95 % interval over people of the gain in squared error (of a signal: R2), averaged over "
        "seeds.",
        "",
    ]
    body = []
    depends = everyone["method"].str.contains(MODEL_NAME, regex=False)
    depends |= everyone["role"] == "model"
    for (people, steps), rows in everyone[depends].groupby(["people", "steps"]):
        for row, part in rows.groupby(rows["method"].where(rows["role"] != "model", "Pretrained")):
            cells = [f"{row}, {people} people, {steps} steps", str(part["seed"].nunique())]
            body.append(cells + [_cell(part[part["task"] == task]) for task in tasks])
    for method, rows in everyone[~depends].groupby("method", sort=False):
        means = rows.groupby("task")["r2"].mean()
        cells = [f"{means[task]:.3f}" if task in means else "" for task in tasks]
        body.append([method, str(rows["seed"].nunique()), *cells])
    lines += [markdown_table(["R2", "Seeds", *tasks], body), "", "## Where pretraining pays", ""]
    lines += [f"- {task}: {pays(everyone[everyone['task'] == task])}" for task in tasks]
    lines += ["", "## Exponents", "", "R2 = ceiling - scale x size^-exponent; of a trait the "
              "ceiling is the oracle's R2.", ""]  # fmt: skip
    head = ["Task", "Over", "At", "Exponent"]
    lines.append(markdown_table(head, [[*law[:3], str(law[3])] for law in laws]))
    return "\n".join(lines) + "\n"


def _cell(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    text = f"{rows['r2'].mean():.3f}"
    if "low" in rows and rows["low"].notna().any():
        text += f" [{rows['low'].mean():+.3f}, {rows['high'].mean():+.3f}]"
    return text


def pays(rows: pd.DataFrame) -> str:
    """The least pretraining whose model is above its untrained copy, and above all baselines."""
    model = rows[rows["role"] == "model"].groupby(["people", "steps"]).mean(numeric_only=True)
    raw = rows[rows["role"] == "raw"].groupby("method")["r2"].mean()
    best = raw.idxmax()
    above = {
        "the untrained copy": model[model["low"] > 0] if "low" in model else model[:0],
        f"{best} ({raw[best]:.3f})": model[model["r2"] > raw[best]],
    }
    said = []
    for name, enough in above.items():
        if enough.empty:
            said.append(f"above {name}: at no size run")
        else:
            people, steps = enough.index[0]
            said.append(f"above {name}: from {people} people, {steps} steps")
    return "; ".join(said)


def draw(table: pd.DataFrame, path: Path) -> None:
    """R2 over the people of the pretraining for each number of steps, and over labelled people."""
    tasks = [task for task in (*TRAITS, *SIGNAL) if task in set(table["task"])]
    figure = Figure(figsize=(2.6 * len(tasks), 5.6), dpi=130, layout="constrained")
    panels = figure.subplots(2, len(tasks), squeeze=False)
    for task, over_people, over_labels in zip(tasks, *panels, strict=True):
        rows = table[table["task"] == task]
        labelled = rows["labelled"] if "labelled" in rows else pd.Series(np.nan, rows.index)
        _draw_sizes(over_people, rows[labelled.isna()])
        over_people.set_title(task, fontsize=10)
        _draw_labels(over_labels, rows[labelled.notna()])
    panels[0, 0].set_ylabel("R2 of new people")
    panels[1, 0].set_ylabel("R2 of new people")
    panels[0, 0].legend(fontsize=6, frameon=False)
    save_figure(figure, path)


def _draw_sizes(axes: Axes, rows: pd.DataFrame) -> None:
    model = rows[rows["role"] == "model"]
    steps = sorted(model["steps"].unique())
    for i, number in enumerate(steps):
        line = model[model["steps"] == number].groupby("people")["r2"].mean()
        alpha = (i + 1) / len(steps)
        axes.plot(line.index, line, "o-", color=COLORS["model"], alpha=alpha,
                  label=f"pretrained, {number} steps")  # fmt: skip
    untrained = rows[rows["role"] == "untrained"].groupby("people")["r2"].mean()
    axes.plot(untrained.index, untrained, "s--", color=COLORS["untrained"], label="untrained")
    raw = rows[rows["role"] == "raw"].groupby("method")["r2"].mean()
    best = raw.idxmax()
    axes.axhline(raw[best], color=COLORS["raw"], lw=1, label="best raw baseline")
    axes.text(0.98, raw[best], best, transform=axes.get_yaxis_transform(), fontsize=6,
              ha="right", va="bottom", color=COLORS["raw"])  # fmt: skip
    if "FC" in raw:
        axes.axhline(raw["FC"], color=COLORS["FC"], lw=1, ls=":", label="FC")
    if (rows["role"] == "oracle").any():
        axes.axhline(rows.loc[rows["role"] == "oracle", "r2"].mean(), color="0.6", label="oracle")
    _log_axis(axes, SIZES["people"])


def _draw_labels(axes: Axes, rows: pd.DataFrame) -> None:
    """Of the largest pretraining."""
    if rows.empty:
        axes.axis("off")
        return
    largest = rows.sort_values(["people", "steps"]).iloc[-1]
    rows = rows[(rows["people"] == largest["people"]) & (rows["steps"] == largest["steps"])]
    for (method, role), part in rows.groupby(["method", "role"]):
        line = part.groupby("labelled")["r2"].mean()
        color = COLORS.get(role if role in ("model", "untrained") else method, "0.5")
        axes.plot(line.index, line, "o-", color=color)
    axes.set_ylim(bottom=-0.1)
    _log_axis(axes, SIZES["labelled"])


def _log_axis(axes: Axes, label: str) -> None:
    axes.set_xscale("log", base=4)
    axes.set_xlabel(label, fontsize=8)
    axes.tick_params(labelsize=7)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report of the folder and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the experiment, written by ablate.py")
    folder = parser.parse_args(arguments).folder
    table = collect(Laboratory.of_folder(folder))
    text = markdown(table, fits(table))
    write_text(folder / "known_truth.md", text)
    with replacing(folder / "known_truth.tsv") as file:
        table.to_csv(file, sep="\t", index=False, na_rep="n/a", float_format="%.6g")
    draw(table, folder / "known_truth.png")
    print(text, end="")


if __name__ == "__main__":
    run_main(main)
