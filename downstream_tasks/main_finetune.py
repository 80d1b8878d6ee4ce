"""Fine-tuning, all seeds: train, compare with the baselines, report; or score what is stored.

OUTPUT_ROOT/task/fine_tune/           the report (downstream_tasks/report/write.py)
OUTPUT_ROOT/task/fine_tune/RUN/       the states (downstream_tasks/finetune_state.py)
OUTPUT_ROOT/task/fine_tune/controls/  those of the controls, each in a folder of its own
OUTPUT_ROOT/task/fine_tune/eval/      the report of --eval
"""

import dataclasses
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch

from downstream_tasks.adapters import require_peft
from downstream_tasks.cohort.examples import Cohort
from downstream_tasks.cohort.problem import Problem, Target, make_target
from downstream_tasks.cohort.runs import RunSplit, check_folds, make_splits
from downstream_tasks.cohort.splits import Split, assert_disjoint, run_name
from downstream_tasks.comparison import FitEncoded, baseline_rows, confound_rows, frozen_row
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.engine_finetune import control_of, fine_tune, score_test, steps_to_take
from downstream_tasks.evaluation import (
    Evaluation,
    load_model,
    load_people,
    people_of_pretraining,
    prepare,
)
from downstream_tasks.features.registry import MODEL_NAME, REGISTRY
from downstream_tasks.features.table import Representations
from downstream_tasks.finetune_cost import TrainingCost
from downstream_tasks.finetune_state import (
    BEST,
    LATEST,
    refuse_stored_run,
    state_folder,
    stored_states,
)
from downstream_tasks.heads.result import FittedMethod, HeadResult
from downstream_tasks.notes import qualify
from downstream_tasks.report.folder import clear_results
from downstream_tasks.report.results import Results
from src.datasets.folder import DataFolder
from src.pretrained.encoder import Pretrained
from src.pretrained.load import load_pretrained
from src.utils.distributed import Ranks, is_first_process, launch
from src.utils.errors import UserError
from src.utils.files import replacing
from src.utils.logging import setup_logging

HEAD_NAME = "fine-tuned"
_RESULT = "result.npz"


def run(
    config: DownstreamConfig,
    devices: Sequence[torch.device],
    evaluate: bool = False,
    resume: bool = False,
) -> Results | None:
    """Fine-tune model and controls on ``devices``, write the report and return the results.

    With ``evaluate`` nothing is trained: the fine-tuned checkpoint ``model.load_path`` is scored,
    or, if that is the one that training started from, what training stored. Returns ``None`` in all
    but one of the processes that torchrun starts.

    Raises:
        SystemExit: if a signal stopped the training before its end.
        UserError: on bad input of any kind.
    """
    if evaluate:
        return score_stored(config, devices[0])
    if config.fine_tune.lora_rank:
        require_peft()
    stored = [
        path
        for name, seed in product(config.fine_tuned, config.seeds)
        for path in stored_states(config, seed, LATEST, name)
    ]
    if not resume:
        for path in sorted(config.output_dir.rglob(LATEST)):  # those of other seeds too
            refuse_stored_run(path.parent)  # before anything is written
    if resume and not stored:
        raise UserError(f"nothing to resume in {config.output_dir}: no seed*/{LATEST}.")
    launch(train_all, devices, config, resume)
    if not is_first_process():
        return None
    setup_logging(config.output_dir)
    evaluation = prepare(config)
    evaluation.begin()
    representations = Representations(config, evaluation.cohort, evaluation.pretrained, devices[0])
    rows = table_rows(
        representations,
        evaluation.problems,
        lambda name, problem: _read_result(state_folder(config, problem.name, name)),
    )
    return evaluation.report(rows)


def train_all(ranks: Ranks, config: DownstreamConfig, resume: bool) -> None:
    """One process of ``ranks``: fine-tune model and controls; leave each result in its folder."""
    setup_logging(config.output_dir, ranks.main)
    # It begins with the report: a run that cannot be resumed leaves the splits that are stored.
    evaluation = prepare(config)
    cost = TrainingCost(
        config, [steps_to_take(problem, config, ranks) for problem in evaluation.problems]
    )
    for name, problem in product(config.fine_tuned, evaluation.problems):
        folder = state_folder(config, problem.name, name)
        if ranks.main and not (folder / LATEST).exists():
            (folder / _RESULT).unlink(missing_ok=True)  # of a run whose state is gone
        result = fine_tune(
            evaluation.pretrained, problem, config, ranks, folder, cost, resume, name
        )
        if ranks.main:
            _write_result(folder, result)


def table_rows(
    representations: Representations, problems: Sequence[Problem], fine_tuned: FitEncoded
) -> list[FittedMethod]:
    """The model, its encoder before it was fine-tuned, readouts, baselines and controls.

    Args:
        fine_tuned: result of the model, or of a control, by its name.
    """
    results = [fine_tuned("model", problem) for problem in problems]
    rows = [FittedMethod(MODEL_NAME, HEAD_NAME, "model", results, "model")]
    labelled = all(len(problem.split.train) for problem in problems)
    if labelled and representations.config.evaluation.controls != "none":
        rows.append(frozen_row(representations, problems))
    rows += baseline_rows(representations, problems, encoded_fit=fine_tuned, encoded_head=HEAD_NAME)
    return rows + confound_rows(representations, problems)


# --- evaluation of stored checkpoints ------------------------------------------------------------


def score_stored(config: DownstreamConfig, device: torch.device) -> Results:
    """Score fine-tuned checkpoints on the test people and write the report to ``eval``.

    Ours hold their split, classes and target statistics. For the release's the task's split is
    used, and the training people of that split give the statistics.

    Raises:
        UserError: if nothing is stored, or what is does not fit the cohort.
    """
    setup_logging(config.output_dir)
    pretrained, folder = load_model(config)
    if pretrained.head:
        return _score_file(config, pretrained, folder, device)
    paths = _stored_paths(config)
    of_model = [path for (name, _), path in paths.items() if name == "model"]
    cohort = load_people(config, folder, _load(config, of_model[0]))
    problems, results = [], {}
    for path in of_model:  # one at a time: each is as large as the encoder
        model = _load(config, path)
        problem = stored_problem(config, cohort, model)
        problems.append(problem)
        results[problem.name] = score_one(model, problem, config, device)
    check_folds(cohort, [RunSplit(p.seed, p.fold, p.split) for p in problems])

    def fine_tuned(name: str, problem: Problem) -> HeadResult:
        if name == "model":
            return results[problem.name]
        return score_one(_load(config, paths[name, problem.name]), problem, config, device)

    if not all(len(problem.split.train) for problem in problems):  # other people: nothing is fitted
        config = _with_rows(config, config.fine_tuned[1:])
    representations = Representations(config, cohort, pretrained, device)
    rows = table_rows(representations, problems, fine_tuned)
    return _report_stored(config, model, folder, cohort, problems, rows)


def score_one(
    fine_tuned: Pretrained, problem: Problem, config: DownstreamConfig, device: torch.device
) -> HeadResult:
    """Scores of the test people by one fine-tuned checkpoint, with the epoch that it is of."""
    chosen = {"epoch": fine_tuned.task["epoch"]} if fine_tuned.task else {}
    trained = (fine_tuned.task or {}).get("trained_parameters")
    scores = score_test(fine_tuned, problem, config, Ranks(device))
    return HeadResult(scores, chosen, trained_parameters=trained)


def _score_file(
    config: DownstreamConfig, model: Pretrained, folder: DataFolder, device: torch.device
) -> Results:
    """Report one fine-tuned checkpoint, of the release or of an earlier run."""
    cohort = load_people(config, folder, model)
    problem, entry = stored_problem(config, cohort, model), REGISTRY[control_of(model)]
    result = score_one(model, problem, config, device)
    rows = [FittedMethod(entry.title, HEAD_NAME, entry.kind, [result], entry.name)]
    if len(problem.split.train):
        # The others describe an encoder before it was fine-tuned.
        names = tuple(n for n in config.baselines if REGISTRY[n].reads != "encoder")
        raw = _with_rows(config, names)
        rows += baseline_rows(Representations(raw, cohort, model, device), [problem])
    return _report_stored(config, model, folder, cohort, [problem], rows)


def _report_stored(
    config: DownstreamConfig,
    model: Pretrained,
    folder: DataFolder,
    cohort: Cohort,
    problems: Sequence[Problem],
    rows: Sequence[FittedMethod],
) -> Results:
    """Write the report of stored checkpoints, of which ``model`` is one, to ``eval``."""
    test_people = {person for p in problems for person in cohort.people[p.split.test]}
    seen = people_of_pretraining(model, test_people)
    notes, settings = qualify(config, model, folder, cohort, test_people, seen)
    clear_results(config.output_dir / "eval")
    pretrained_on = None if seen is None else len(seen)
    evaluation = Evaluation(config, model, folder, cohort, problems, pretrained_on, notes, settings)
    return evaluation.report(rows, config.output_dir / "eval")


def _with_rows(config: DownstreamConfig, baselines: tuple[str, ...]) -> DownstreamConfig:
    """The same task with these rows beside the model, and no others.

    Nor a baseline together with the model: its features were fine-tuned on the training people.
    """
    rows = dataclasses.replace(config.evaluation, baselines=baselines, readouts=(), stack=())
    return dataclasses.replace(config, evaluation=rows)


def stored_problem(config: DownstreamConfig, cohort: Cohort, model: Pretrained) -> Problem:
    """The people, classes and target statistics that ``model`` was fine-tuned with.

    Raises:
        UserError: if the cohort's classes are not the model's, or only some of its people are.
    """
    task = model.task
    seed = task["seed"] if task else config.evaluation.seed
    fold = task.get("fold") if task else None  # files of before there were folds do not say
    if model.split is not None:
        split = _stored_split(cohort, model)
    elif config.split.in_folds:
        raise UserError(
            f"split.source is {config.split.source}, but {model.path} was fine-tuned once: it has "
            "seen the people of all folds but one. Give the split it was made with (split.file)."
        )
    else:
        ((_, _, split),) = make_splits(cohort, config.split, [seed])
    assert_disjoint(cohort, split)
    balanced = config.evaluation.class_weights == "balanced"
    if task is None:
        target = make_target(cohort, split, config.data.label_normalization)
        return Problem(cohort, split, target, config.metric, seed, balanced=balanced)
    if (config.data.type, list(cohort.classes)) != (task["type"], task["classes"]):
        raise UserError(
            f"{model.path} was fine-tuned for {task['type']} of {task['target']} "
            f"({', '.join(task['classes']) or 'a number'}); this task is {config.data.type} of "
            f"{config.data.target} ({', '.join(cohort.classes) or 'a number'}). The classes and "
            "their order must agree: data.classes."
        )
    if cohort.is_classification:
        target = Target(cohort.y, n_classes=len(cohort.classes))
    else:
        mean, scale = task["target_mean"], task["target_scale"]
        target = Target((cohort.y - mean) / scale, mean, scale)
    return Problem(cohort, split, target, config.metric, seed, fold, balanced)


def _stored_paths(config: DownstreamConfig) -> dict[tuple[str, str], Path]:
    """(``model`` or a control, name of the run) -> file of its chosen epoch, for every seed.

    Raises:
        UserError: if one of them was not fine-tuned.
    """
    paths = {}
    for seed in config.seeds:
        of_seed = stored_states(config, seed, BEST)
        if not of_seed:
            raise UserError(
                f"--eval: {config.model.load_path} is not fine-tuned, and there is no "
                f"{state_folder(config, run_name(seed))}*/{BEST}. "
                "Fine-tune first, or give a fine-tuned checkpoint as --load_path."
            )
        paths |= {("model", path.parent.name): path for path in of_seed}
    runs = [run for _, run in paths]
    for name, run in product(config.fine_tuned[1:], runs):
        paths[name, run] = state_folder(config, run, name) / BEST
        if not paths[name, run].is_file():
            raise UserError(
                f"--eval: the control {name} was not fine-tuned, there is no {paths[name, run]}. "
                "Train it by --resume in place of --eval, or leave the controls out: "
                "evaluation.controls=none."
            )
    return paths


def _load(config: DownstreamConfig, path: Path) -> Pretrained:
    return load_pretrained(path, attn_mode=config.model.attn_mode)


def _stored_split(cohort: Cohort, model: Pretrained) -> Split:
    """The split of the checkpoint; a cohort that shares no one with it is tested as a whole."""
    part_of = {person: part for part, people in model.split.items() for person in people}
    part = np.array([part_of.get(person, "") for person in cohort.people])
    unknown = sorted(set(cohort.people[part == ""]))
    if len(unknown) == len(set(cohort.people)):
        nobody = np.array([], dtype=np.int64)
        return Split(train=nobody, valid=nobody, test=np.arange(len(part)))
    if unknown:
        raise UserError(
            f"{len(unknown)} people of {model.path}'s data set were in none of its splits: "
            f"{', '.join(unknown[:10])}. Evaluate on the people it was fine-tuned with, or on a "
            "data set of other people."
        )
    return Split(*(np.flatnonzero(part == name) for name in ("train", "valid", "test")))


# --- results of a run, from the process that trained to the one that reports ---------------------


def _write_result(folder: Path, result: HeadResult) -> None:
    kept = ("chosen", "history", "notes", "trained_parameters")
    about = json.dumps({name: getattr(result, name) for name in kept})
    with replacing(folder / _RESULT) as file:
        np.savez(file, scores=result.scores, about=about)


def _read_result(folder: Path) -> HeadResult:
    with np.load(folder / _RESULT, allow_pickle=False) as stored:
        about = json.loads(str(stored["about"]))
        return HeadResult(stored["scores"], **about | {"notes": tuple(about["notes"])})
