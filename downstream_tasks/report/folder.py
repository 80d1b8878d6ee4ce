"""What evaluations write into a result folder, and how a new run clears it of an earlier one."""

import re
from pathlib import Path

# Of earlier runs with more seeds, or other folds, files would stay that look like this run's.
_FILES = re.compile(
    r"config\.yaml|revision\.txt|results\.(json|md)|table\.tsv|figure\.(png|svg)|predictions\.tsv"
    r"|(people|rois|networks)\.csv|metrics\.jsonl|learning_curve\.(tsv|png)"
    r"|split_seed\d+(_fold\d+)?\.tsv|head_seed\d+(_fold\d+)?\.safetensors"
)
_EVENTS = "events.out.tfevents.*"  # TensorBoard's


def written_files(folder: Path) -> list[Path]:
    """What an evaluation has written into ``folder``, but for the log and what was fine-tuned.

    The log goes on from run to run; the states of a fine-tuning took hours and are never removed
    by another run.
    """
    if not folder.is_dir():
        return []
    files = [p for p in folder.iterdir() if p.is_file() and _FILES.fullmatch(p.name)]
    files += (folder / "tensorboard").rglob(_EVENTS)
    return sorted(files) + written_files(folder / "eval")


def clear_results(folder: Path) -> None:
    """Remove what an earlier evaluation wrote into ``folder``, and no file of anyone else."""
    for path in written_files(folder):
        path.unlink()
    for inner in ("tensorboard", "eval"):
        for path in sorted((folder / inner).rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        if (folder / inner).is_dir() and not any((folder / inner).iterdir()):
            (folder / inner).rmdir()
