"""Join result folders into one table, beside published numbers (method 7).

    python downstream_eval.py compare output_dirs
    python downstream_eval.py compare output_dirs/hca_sex/fine_tune output_dirs/hca_sex/logistic

Prints a markdown table; with --out NAME it also writes NAME.md and, with every metric, NAME.tsv.
Folders of the same task, protocol and test people are compared with each other, checkpoint against
checkpoint, paired over the people of their predictions.tsv (NAME_checkpoints.tsv).
The published numbers come from the authors' people and splits: they show the order of magnitude; a
difference from them on other data means nothing.
"""

import argparse
import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from downstream_tasks.report.cells import (
    METRIC_TITLES,
    interval_text,
    markdown_table,
    mean_sd_text,
)
from downstream_tasks.report.checkpoints import compare_checkpoints, pairs_markdown, pairs_table
from downstream_tasks.report.published import majority_warnings
from downstream_tasks.report.results import RESULTS_FILE, Results
from src.utils.errors import UserError
from src.utils.files import replacing, write_text

SHOWN = {  # what a line of the printed table shows beside the main metric
    "classification": ("accuracy", "balanced_accuracy", "f1", "f1_macro", "auroc"),
    "regression": ("mse", "pearson", "r2", "mae_raw"),
    "fingerprint": ("identification", "same_person_auc"),
}


def find_results(folders: Sequence[Path]) -> list[Path]:
    """Every ``results.json`` in or below ``folders``, each once, in the order of their paths.

    What ``--eval`` wrote beside the results it scored again is left out unless it is named itself:
    it has the same rows.
    """
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder of results.")
        here = [
            path
            for path in sorted(folder.rglob(RESULTS_FILE))
            if path.parent == folder
            or path.parent.name != "eval"
            or not (path.parents[1] / RESULTS_FILE).is_file()
        ]
        if not here:
            raise UserError(f"{folder} holds no {RESULTS_FILE}; run downstream_eval.py first.")
        found += here
    return list(dict.fromkeys(path.resolve() for path in found))


def join(results: Mapping[Path, Results]) -> pd.DataFrame:
    """One line per folder and method, every metric in three columns; numbers, not text.

    ``results`` are by the paths of their files. ``folder`` is as short as tells them apart.
    """
    common = Path(os.path.commonpath([path.parent.parent for path in results]))
    lines = []
    for path, result in results.items():
        protocol = result.protocol
        for row in result.rows:
            line = {
                "task": result.task,
                "protocol": f"{protocol}, --eval" if path.parent.name == "eval" else protocol,
                "type": result.type,
                "method": row.name,
                "head": row.head,
                "kind": row.kind,
                "runs": len(row.runs),
                "people": result.cohort.n_people,
                "main_metric": result.main_metric,
                "folder": path.parent.relative_to(common).as_posix(),
                "checkpoint": result.checkpoint.path,
            }
            for name in result.metrics:
                line[name], line[f"{name}_sd"] = row.mean[name], row.sd[name]
                line[f"{name}_low"], line[f"{name}_high"] = row.interval[name]
            versus = result.comparison(row, result.fc)
            line["difference_from_fc"] = versus.difference if versus else None
            line["difference_p"] = versus.p if versus else None
            # The paper has one model and no baseline: its numbers stand beside the model only.
            if row is result.model:
                line |= {f"published_{k}": value for k, value in result.published.items()}
                line["published_is_majority_class"] = " ".join(majority_warnings(result)) or None
            lines.append(line)
    return pd.DataFrame(lines)


def to_markdown(table: pd.DataFrame) -> str:
    """The table as text, a section per type of task, then warnings about published numbers."""
    sections, warnings = [], {}
    for kind, part in table.groupby("type", sort=False):
        metrics = [name for name in SHOWN[kind] if name in part and part[name].notna().any()]
        header = ["Task", "Protocol", "Method", "Head", "Main metric", "95 % interval"]
        header += [METRIC_TITLES[name] for name in metrics]
        header += ["Difference from FC", "Published (fine-tuned)", "Folder", "Checkpoint"]
        lines = []
        for row in part.to_dict("records"):
            main = row["main_metric"]
            cells = [row["task"], row["protocol"], row["method"], row["head"]]
            cells.append(f"{METRIC_TITLES[main]} {mean_sd_text(row[main], row[f'{main}_sd'])}")
            cells.append(interval_text((row[f"{main}_low"], row[f"{main}_high"])))
            cells += [mean_sd_text(row[name], row[f"{name}_sd"]) for name in metrics]
            difference = row["difference_from_fc"]
            cells.append("" if pd.isna(difference) else f"{difference:+.3f}")
            published = ", ".join(
                f"{METRIC_TITLES[name]} {row[f'published_{name}']:g}"
                for name in METRIC_TITLES
                if pd.notna(row.get(f"published_{name}"))
            )
            if pd.notna(warning := row.get("published_is_majority_class")):
                published += " (of a majority class, see below)"
                warnings[f"{row['folder']}: {warning}"] = None
            lines.append([*cells, published, row["folder"], row["checkpoint"]])
        sections.append(markdown_table(header, lines))
    sections += warnings
    return "\n\n".join(sections) + "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``downstream_eval.py compare``."""
    parser.add_argument("folders", nargs="+", type=Path, help="result folders, or folders of them")
    parser.add_argument("--out", type=Path, help="also write OUT.md and OUT.tsv")


def run(arguments: argparse.Namespace) -> None:
    """Print the table, and write it where ``--out`` says."""
    paths = find_results(arguments.folders)
    results = {path: Results.read(path) for path in paths}
    table = join(results)
    pairs = compare_checkpoints(results)
    text = "\n".join(filter(None, (to_markdown(table), pairs_markdown(pairs))))
    print(text, end="")
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.out.with_suffix(".md"), text)
        tables = {arguments.out.with_suffix(".tsv"): table}
        if pairs:
            name = f"{arguments.out.stem}_checkpoints.tsv"
            tables[arguments.out.with_name(name)] = pairs_table(pairs)
        for path, one in tables.items():
            with replacing(path) as file:
                one.to_csv(file, sep="\t", index=False, na_rep="n/a", quoting=csv.QUOTE_NONE)
