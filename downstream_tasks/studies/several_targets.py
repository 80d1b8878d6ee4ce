"""Run the tasks of several targets: one pass of the encoder, a result folder and a row for each."""

from collections.abc import Sequence
from pathlib import Path

import torch

from downstream_tasks import main_finetune, main_linearprobe
from downstream_tasks.cohort.clips import lacks_statistics
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.evaluation import load_model, prepare
from downstream_tasks.features.table import Representations
from downstream_tasks.report.compare import join, to_markdown
from downstream_tasks.report.results import RESULTS_FILE, Results
from downstream_tasks.studies.run import check_studies
from downstream_tasks.studies.shared_features import SharedRepresentations, everyone
from src.utils.errors import UserError
from src.utils.logging import setup_logging


def run_targets(
    configs: Sequence[DownstreamConfig],
    devices: Sequence[torch.device],
    evaluate: bool = False,
    resume: bool = False,
) -> dict[Path, Results]:
    """Evaluate every task; results by the path of their ``results.json``.

    Fine-tuning runs one target after the other. Frozen protocols compute features once for
    everyone who has any of the labels. Labels, classes and splits of all targets are checked before
    the encoder runs.

    Raises:
        UserError: as the protocols, and for ``fingerprint``, which predicts nothing.
    """
    protocol = configs[0].protocol
    if protocol == "fingerprint":
        raise UserError(
            "fingerprint predicts no target; data.target is a list of "
            f"{len(configs)}. Name one, or choose another protocol."
        )
    if protocol == "fine_tune":
        found = [main_finetune.run(config, devices, evaluate, resume) for config in configs]
    else:
        found = _run_frozen(configs, devices[0], evaluate)
    folders = [config.output_dir / "eval" if evaluate else config.output_dir for config in configs]
    return {
        folder / RESULTS_FILE: results
        for folder, results in zip(folders, found, strict=True)
        if results is not None  # of the first process only
    }


def joined_table(results: dict[Path, Results]) -> str:
    """All targets in one table, as ``downstream_eval.py compare`` prints it."""
    return to_markdown(join(results))


def _run_frozen(
    configs: Sequence[DownstreamConfig], device: torch.device, evaluate: bool
) -> list[Results]:
    loaded = load_model(configs[0])
    evaluations = []
    for config in configs:
        setup_logging(config.output_dir)
        evaluation = prepare(config, from_stored=evaluate, loaded=loaded)
        check_studies(evaluation)
        evaluations.append(evaluation)
    if not evaluate:  # all targets are in order: what earlier runs wrote can go
        for evaluation in evaluations:
            evaluation.begin()
    pretrained = loaded[0]
    cohort = everyone([evaluation.cohort for evaluation in evaluations])
    # Statistics of normalisation may be those of a target's training people: features then are too.
    shared = not lacks_statistics(configs[0].data, pretrained)
    whole = Representations(configs[0], cohort, pretrained, device)
    results = []
    for config, evaluation in zip(configs, evaluations, strict=True):
        setup_logging(config.output_dir)
        if shared:
            representations = SharedRepresentations(config, evaluation.cohort, whole)
        else:
            own = evaluation.pretrained
            representations = Representations(config, evaluation.cohort, own, device)
        results.append(main_linearprobe.evaluate_frozen(evaluation, representations, evaluate))
    return results
