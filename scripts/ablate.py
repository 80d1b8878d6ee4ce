"""Run an experiment: arms of pretraining x seeds x folds of people, evaluated and compared.

    python scripts/ablate.py configs/experiments/positions.yaml --dry-run
    python scripts/ablate.py configs/experiments/positions.yaml --jobs 2
    python scripts/ablate.py configs/experiments/positions.yaml --devices cuda:0 cuda:1 steps=6000
    python scripts/ablate.py status output_dirs/experiments/positions
    python scripts/ablate.py report output_dirs/experiments/positions

Every run is pretrained by main.py and evaluated by downstream_eval.py, in a folder of its own. The
same command again goes on where it was: CTRL-C, a kill or a run that failed cost what was not
saved. scripts/ablation/experiment.py says what an experiment file holds.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.ablation.cost import describe, status
from scripts.ablation.experiment import plan_from_dict
from scripts.ablation.laboratory import Laboratory
from scripts.ablation.pool import do_runs
from scripts.ablation.runs import Run
from src.utils.distributed import default_devices, parse_devices
from src.utils.errors import UserError, run_main
from src.utils.logging import setup_logging
from src.utils.yaml_config import merge, nested, parse_override, read_yaml

OUT = Path("output_dirs/experiments")

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the laboratory; exit code 1 if a run failed."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    setup_logging()
    if arguments and arguments[0] in ("report", "status"):
        what = {"report": Laboratory.report, "status": status}[arguments[0]]
        parser = argparse.ArgumentParser(prog=f"ablate.py {arguments[0]}")
        parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
        for folder in parser.parse_args(arguments[1:]).folders:
            print(what(Laboratory.of_folder(folder)), end="\n\n")
        return 0
    return run_experiment(parse_arguments(arguments))


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Of the first form of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("experiment", metavar="EXPERIMENT.yaml")
    add("--out", type=Path, help=f"folder (default: {OUT}/NAME)")
    add("--devices", nargs="+", default=default_devices(), metavar="DEVICE",
        help="runs take them in turn (default: the best single device)")  # fmt: skip
    add("--jobs", type=int, metavar="N",
        help="runs at a time, which share the cores (default: one for each device)")  # fmt: skip
    add("--only", nargs="+", default=[], metavar="PATTERN",
        help="runs whose name ARM/seedS_foldF fits one, such as 'mapping/*'")  # fmt: skip
    add("--dry-run", action="store_true", help="say what would be done, and how long it takes")
    add("overrides", nargs="*", default=[], metavar="key=value",
        help="of the experiment's keys, such as steps=6000")  # fmt: skip
    parsed = parser.parse_intermixed_args(arguments)
    # An override written right after a list of devices or patterns is read as one of it.
    for name in ("devices", "only"):
        given = getattr(parsed, name)
        parsed.overrides += [text for text in given if "=" in text and "/" not in text]
        setattr(parsed, name, [t for t in given if not ("=" in t and "/" not in t)])
    parsed.jobs = len(parsed.devices) if parsed.jobs is None else parsed.jobs
    if parsed.jobs < 1:
        raise UserError(f"--jobs is {parsed.jobs}; allowed: 1 or more.")
    for device in parsed.devices:  # of any kinds: each is one run's
        parse_devices([device])
    return parsed


def run_experiment(arguments: argparse.Namespace) -> int:
    """Lay down, run, report."""
    values = read_yaml(arguments.experiment)
    for override in arguments.overrides:
        values = merge(values, nested(*parse_override(override)))
    plan = plan_from_dict(values, arguments.experiment)
    out = arguments.out or OUT / plan.experiment.name
    lab = Laboratory.open(plan, out)
    runs = chosen(lab.runs, arguments.only)
    if arguments.dry_run:
        print(describe(lab, runs, arguments.devices, arguments.jobs))
        return 0
    lab.lay_down()
    outcomes = do_runs(runs, arguments.devices, arguments.jobs)
    print(lab.report())
    ended = {state: [o for o in outcomes if o.state == state] for state in ("failed", "busy")}
    for state, of_state in ended.items():
        for outcome in of_state:
            logger.error("%s: %s: %s", outcome.run.name, state, outcome.why)
    return int(any(ended.values()))


def chosen(runs: Sequence[Run], patterns: Sequence[str]) -> list[Run]:
    """Runs whose names fit one of ``patterns``; all without any."""
    found = [run for run in runs if not patterns or any(fnmatch(run.name, p) for p in patterns)]
    if not found:
        names = ", ".join(run.name for run in runs[:3])
        raise UserError(f"--only: no run is called {' or '.join(patterns)}; there are {names}, ...")
    return found


if __name__ == "__main__":
    run_main(main)
