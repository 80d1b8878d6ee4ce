"""What an experiment costs: runs, steps, and hours by what a step took or takes here."""

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from statistics import median

import torch

from scripts.ablation.laboratory import Laboratory
from scripts.ablation.pool import last_line
from scripts.ablation.runs import PRETRAINED, Run
from scripts.benchmark import measure_step
from src.utils.distributed import parse_devices


def describe(lab: Laboratory, runs: Sequence[Run], devices: Sequence[str], jobs: int) -> str:
    """The plan in words, with an estimate of the hours that pretraining takes."""
    e = lab.plan.experiment
    lines = [f"{e.name}: {e.question}", f"stage: {e.stage}; folder: {lab.out}", ""]
    for label, folds in lab.folds.items():
        for fold in folds:
            parts = (f"{len(fold.people(p))} {p}" for p in ("train", "valid", "test", "excluded"))
            lines.append(f"{label}, fold {fold.number}: {', '.join(parts)} people")
    lines.append("")
    seconds = 0.0
    left = [run for run in runs if not run.is_done()]
    for arm in lab.plan.arms:
        own = [run for run in left if run.arm == arm]
        changed = ", ".join(f"{k}={v}" for k, v in arm.overrides.items()) or "as the config"
        lines.append(f"{arm.name}: {changed}")
        if own:
            each = seconds_per_step(lab, own[0], devices[0], jobs)
            steps = sum(run.total_steps - run.steps_done for run in own)
            seconds += each * steps
            lines.append(f"    {len(own)} runs left, {steps} steps of about {each:.3g} s")
    tasks = ", ".join(task.label for task in lab.plan.tasks)
    hours = timedelta(seconds=round(seconds / jobs))
    lines += [
        "",
        f"{len(left)} of {len(runs)} runs to do, {jobs} at a time; then of each: {tasks}",
        f"about {hours} of pretraining, and the evaluations",
    ]
    return "\n".join(lines)


def seconds_per_step(lab: Laboratory, run: Run, device: str, jobs: int) -> float:
    """What a step of this arm took in runs that are done; else a few steps are taken and timed.

    Those are of one clip, and counted times the clips of a step: a little too much on a GPU.
    """
    took = []
    for other in lab.runs:
        done = other.path / PRETRAINED
        if other.arm == run.arm and done.exists():
            stated = json.loads(done.read_text())
            took += [stated["seconds"] / stated["steps"]] if stated["steps"] else []
    if took:
        return median(took)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // jobs))
    config = run.config
    clips = config.data.batch_size * config.meta.accumulation_steps
    (where,) = parse_devices([device])
    small = replace(config, data=replace(config.data, batch_size=1))
    one, _, _ = measure_step(small, {}, where, repeats=2)
    torch.set_num_threads(threads)
    return one * clips


def status(lab: Laboratory) -> str:
    """A line for each run: done, how far, or what its log ends with."""
    lines = []
    for run in lab.runs:
        with run.locked() if run.path.exists() else nullcontext(0) as lock:
            at_work = lock is None
        lines.append(f"{run.name}: {_state(run, at_work)}")
    done = sum(run.is_done() for run in lab.runs)
    return "\n".join([*lines, f"{done} of {len(lab.runs)} runs are done"])


def _state(run: Run, at_work: bool) -> str:
    if run.is_done():
        return "done"
    log = run.path / "log.txt"
    if not log.exists():
        return "waiting"
    left = [task.label for task in run.tasks_left()]
    pretrained = (run.path / PRETRAINED).exists()
    far = (
        f"evaluating, {', '.join(left)} left"
        if pretrained
        else (f"step {run.steps_done} of {run.total_steps}")
    )
    return f"{far}{'' if at_work else f', not running; log: {last_line(log)}'}"
