"""An experiment in its folder: what is laid down before the first run, and what is made of them.

experiment.yaml   the file, whole; what it says of people may not change any more
endpoints.json    whether each endpoint was declared before the first result
people.csv        who was scored in which fold
data/             a data-set folder for each fold (folds.py)
runs/             a folder for each run (runs.py)
results.csv, endpoints.csv, report.md, figure.png, figure.svg   by ``report``
"""

import dataclasses
import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from scripts.ablation.choosers import PEOPLE_FILE, has_results, keys_of, people_read
from scripts.ablation.endpoints import Comparison, compare_endpoints
from scripts.ablation.experiment import Endpoint, Plan, plan_from_dict
from scripts.ablation.figure import draw
from scripts.ablation.folds import Fold, fold_folder, make_folds, open_source, write_fold
from scripts.ablation.planning import check_tasks, plan_runs
from scripts.ablation.report import markdown
from scripts.ablation.runs import Run
from scripts.ablation.table import RESULTS_TABLE, collect, write_table
from src.datasets.folder import DataFolder
from src.datasets.folder.format import TABLE_FILE
from src.utils.errors import UserError
from src.utils.files import write_text
from src.utils.progress import progress_bar
from src.utils.yaml_config import differences, read_yaml

EXPERIMENT_FILE, ENDPOINTS_FILE = "experiment.yaml", "endpoints.json"
# What decides who is trained on and who is scored.
_OF_PEOPLE = ("stage", "folds", "split_seed", "valid")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Laboratory:
    """A plan with its folder, its data and its runs; nothing is written by making one."""

    plan: Plan
    out: Path
    sources: dict[str, DataFolder]
    folds: dict[str, list[Fold]]
    runs: tuple[Run, ...]

    @classmethod
    def open(cls, plan: Plan, out: Path) -> "Laboratory":
        """Read the data, divide the people, check every config and task.

        Raises:
            UserError: at the first thing that is wrong, before anything is written.
        """
        sources = {data.label: open_source(data) for data in plan.data}
        folds = {
            label: make_folds(source.runs, plan.experiment, str(source.path / TABLE_FILE))
            for label, source in sources.items()
        }
        lab = cls(plan, out, sources, folds, plan_runs(plan, out, sources, folds))
        check_tasks(lab.runs)
        lab._check_same_people()
        return lab

    @classmethod
    def of_folder(cls, out: Path) -> "Laboratory":
        """That of an experiment's folder."""
        path = out / EXPERIMENT_FILE
        if not path.exists():
            raise UserError(f"{out} is not the folder of an experiment: it has no {path.name}.")
        return cls.open(plan_from_dict(read_yaml(path), str(path)), out)

    def _check_same_people(self) -> None:
        path = self.out / EXPERIMENT_FILE
        if not path.exists():
            return
        stored = plan_from_dict(read_yaml(path), str(path))
        here, there = (
            {key: getattr(plan.experiment, key) for key in _OF_PEOPLE}
            | {"data": {data.label: data.folder for data in plan.data}}
            for plan in (self.plan, stored)
        )
        if found := differences(here, there):
            raise UserError(
                f"{self.out} holds this experiment with other people: {'; '.join(found)}. Write "
                f"elsewhere (--out), or remove it: rm -r {shlex.quote(str(self.out))}"
            )

    # --- before the first run --------------------------------------------------------------------

    def lay_down(self) -> None:
        """Write the experiment, its folds, and the config of every run.

        Raises:
            UserError: if a run that is there is of another config, before anything is written.
        """
        for run in self.runs:
            run.check_unchanged()
        self.out.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(dict(self.plan.values), sort_keys=False, allow_unicode=True)
        self._declare_endpoints()
        write_text(self.out / EXPERIMENT_FILE, text)
        write_table(self.out / PEOPLE_FILE, self.people())
        folders = [(data, fold) for data in self.plan.data for fold in self.folds[data.label]]
        for data, fold in progress_bar(folders, desc="data of the folds", unit="fold"):
            folder = fold_folder(self.out, data, fold.number)
            write_fold(self.sources[data.label], fold, folder, data.gradients)
        for run in self.runs:
            run.prepare()

    def _declare_endpoints(self) -> None:
        path = self.out / ENDPOINTS_FILE
        declared = json.loads(path.read_text()) if path.exists() else {}
        late = has_results(self.out)
        declared |= {
            _key(endpoint): "after the first results" if late else "before the first result"
            for endpoint in self.plan.endpoints
            if _key(endpoint) not in declared
        }
        write_text(path, json.dumps(declared, indent=1))

    def people(self) -> pd.DataFrame:
        """Everyone, with the fold in which they are scored, if any."""
        lines = []
        for label, folds in self.folds.items():
            scored = {person: fold.number for fold in folds for person in fold.people("test")}
            for person, group in folds[0].group_of.items():
                lines.append(
                    {
                        "data": label,
                        "run_order": self.sources[label].description["run_order"],
                        "participant_id": person,
                        "group": group,
                        "stage": self.plan.experiment.stage,
                        "scored_in_fold": scored.get(person),
                    }
                )
        return pd.DataFrame(lines).astype({"scored_in_fold": "Int64"})

    # --- after the runs --------------------------------------------------------------------------

    def report(self) -> str:
        """Write table, report and figure of what is done so far; return the report."""
        test_people = {
            str(fold_folder(self.out, data, fold.number)): set(fold.people("test"))
            for data in self.plan.data
            for fold in self.folds[data.label]
        }
        table = collect(self.runs, self.plan.experiment.name, test_people)
        write_table(self.out / RESULTS_TABLE, table)
        groups = {
            (label, person): group
            for label, folds in self.folds.items()
            for person, group in folds[0].group_of.items()
        }
        comparisons = compare_endpoints(self.plan, table, groups)
        notes, chosen_on = self._notes(table)
        fresh: list[Comparison] = []
        if chosen_on:
            known = pd.MultiIndex.from_frame(table[["data", "participant_id"]]).isin(chosen_on)
            fresh = [] if known.all() else compare_endpoints(self.plan, table[~known], groups)
        text = markdown(self.plan, table, comparisons, fresh, notes)
        write_table(self.out / "endpoints.csv", _endpoint_rows(comparisons))
        write_text(self.out / "report.md", text)
        draw(self.out, self.plan, table, comparisons)
        return text

    def _notes(self, table: pd.DataFrame) -> tuple[list[str], set[tuple[str, str]]]:
        """What qualifies the report, and the scored people by whom something was chosen before."""
        people = self.people()
        scored = people[people["scored_in_fold"].notna()]
        done = sum(run.is_done() for run in self.runs)
        notes = [f"{done} of {len(self.runs)} runs are done"]
        if len(revisions := {revision for run in self.runs for revision in run.revisions()}) > 1:
            notes.append(
                f"runs are of {len(revisions)} states of the code: {', '.join(sorted(revisions))}"
            )
        late = json.loads((self.out / ENDPOINTS_FILE).read_text())
        notes += [
            f"declared {when}: {endpoint.title}"
            for endpoint in self.plan.endpoints
            if (when := late.get(_key(endpoint), "after the first results")).startswith("after")
        ]
        if self.plan.experiment.stage == "choose":
            notes.append(
                f"chosen on validation people: {len(scored)} are scored; the test people of the "
                f"data are in none of its folders"
            )
            return notes, set()
        keys = keys_of(scored)
        read = people_read(self.out, self.plan.experiment.chosen_by, keys)
        if not read:
            notes.append(f"test people: {len(scored)}, by none of whom anything here was chosen")
            return notes, set()
        known = set.union(*read.values())
        notes.append(
            f"of {len(scored)} people scored here, {len(known)} were read when something was "
            f"chosen ({', '.join(sorted(read))}): for them the endpoints are not free of it"
            + (", and nobody else is left" if len(known) == len(keys) else "")
        )
        of_data = dict(zip(people["run_order"], people["data"], strict=True))
        return notes, {(of_data[order], person) for order, person in known}


def _key(endpoint: Endpoint) -> str:
    return json.dumps(dataclasses.asdict(endpoint))


def _endpoint_rows(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "task": c.endpoint.task,
                "variant": c.endpoint.variant,
                "metric": c.endpoint.metric,
                "against": c.endpoint.against,
                **{name: getattr(c, name) for name in ("data", "arm", "method", "reference")},
                "score": c.score,
                "reference_score": c.reference_score,
                **dataclasses.asdict(c.found),
                "holm": c.holm,
            }
            for c in comparisons
        ]
    )
