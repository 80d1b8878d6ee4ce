"""Import the HCP-Aging files of the release, ``hca450_{train,valid,test}_{x,y}.pt``.

    python -m src.datasets.prepare.hcpa --root DIR --target sex --out data/hca_sex

x is a list or a tensor of ``[450, T]`` series, y their labels (method 7). Neither names the people,
so ids are made up of split and place in the file ("train-0001"). Nothing in the files tells whether
the same place in those of another task is the same person.
"""

import argparse
import codecs
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...utils.arguments import HelpFormatter
from ...utils.errors import PACKAGE, UserError, run_main
from ...utils.progress import progress_bar
from ..folder.format import RUN_COLUMNS, SPLITS
from ..folder.writer import FolderWriter
from ..published_rois import PUBLISHED_ATLAS
from .roi_labels import load_roi_labels

# What a pickled numpy array of numbers is made of: data only. The names are those of numpy 2 and 1.
_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY = [
    np.ndarray,
    np.dtype,
    codecs.encode,
    *(type(np.dtype(kind)) for kind in ("?", "i1", "i2", "i4", "i8", "u1", "f2", "f4", "f8")),
    *((_RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("_core", "core")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
]


def load_pt(path: Path) -> Any:
    """Return what a .pt file holds: tensors, arrays, numbers, text and lists of them, never code.

    Tensors stay on disk until they are used, where the format allows it.

    Raises:
        UserError: if the file is missing, damaged, or would need code to be run.
    """
    try:
        with torch.serialization.safe_globals(_NUMPY):
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file.") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged, or holds objects other than tensors, arrays, numbers, text and "
            "lists of them. Loading those can run any code, so it is not done: save the file anew "
            "with x = [torch.as_tensor(series) for series in x]; torch.save(x, path)."
        ) from error
    except (EOFError, OSError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or no .pt file: {error}") from error


def _load_series(path: Path) -> Sequence[torch.Tensor | np.ndarray]:
    series = load_pt(path)
    if isinstance(series, list | tuple) and series:
        shaped = all(isinstance(x, torch.Tensor | np.ndarray) and x.ndim == 2 for x in series)
    else:
        shaped = isinstance(series, torch.Tensor | np.ndarray) and series.ndim == 3
    if not shaped:
        raise UserError(f"{path}: expected a tensor [n, R, T] or a list of tensors [R, T].")
    return series


def _load_targets(path: Path) -> list[int | float | str]:
    targets = load_pt(path)
    if isinstance(targets, torch.Tensor | np.ndarray):
        targets = targets.tolist()
    if not isinstance(targets, list | tuple):
        raise UserError(f"{path}: expected a tensor or list of labels, not {type(targets)}.")
    numeric = torch.Tensor | np.ndarray | np.generic
    targets = [t.tolist() if isinstance(t, numeric) else t for t in targets]
    # [n, 1] is as common as [n].
    targets = [t[0] if isinstance(t, list) and len(t) == 1 else t for t in targets]
    for i, target in enumerate(targets):
        if not isinstance(target, int | float | str):
            raise UserError(f"{path}: label {i} is {target!r}, expected one number or text.")
    if all(isinstance(t, float) and t.is_integer() for t in targets):
        return [int(t) for t in targets]  # classes stored as 0.0 and 1.0
    return targets


def import_hcpa(
    root: Path,
    out: Path,
    *,
    target: str,
    tr: float = 0.8,
    prefix: str = "hca450",
    roi_labels: Path | None = None,
) -> None:
    """Write the six files under ``root`` as one data-set folder.

    Args:
        target: column of participants.tsv for the labels.
        tr: repetition time in seconds (HCP-Aging: 0.8).
        prefix: first part of the file names.
        roi_labels: where the ROI names come from, see ``load_roi_labels``.

    Raises:
        UserError: if a file is missing or does not fit the others, or ``out`` holds a data set.
    """
    if target in RUN_COLUMNS:
        raise UserError(f"--target {target}: that column has another meaning; choose another name.")
    data = {}
    for split in SPLITS:
        series = _load_series(root / f"{prefix}_{split}_x.pt")
        targets = _load_targets(root / f"{prefix}_{split}_y.pt")
        if len(series) != len(targets):
            raise UserError(
                f"{root / prefix}_{split}_x.pt holds {len(series)} series, _y.pt {len(targets)} "
                "labels."
            )
        data[split] = list(zip(series, targets, strict=True))
    atlas, labels = load_roi_labels(roi_labels, data["train"][0][0].shape[0], atlas=PUBLISHED_ATLAS)
    provenance = {
        "source": f"{prefix}_{{train,valid,test}}_{{x,y}}.pt of the Brain-JEPA release, {root}",
        "notes": "participant ids are made of split and place in the file",
    }
    with (
        FolderWriter(out, roi_labels=labels, atlas=atlas, provenance=provenance) as writer,
        progress_bar(total=sum(map(len, data.values())), unit="run") as progress,
    ):
        for split, runs in data.items():
            for i, (series, value) in enumerate(runs, 1):
                writer.add_run(
                    torch.as_tensor(series).float().numpy(),
                    participant_id=f"{split}-{i:04d}",
                    tr=tr,
                    split=split,
                    **{target: value},
                )
                progress.update()


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PACKAGE}.datasets.prepare.hcpa",
        description="Import the .pt files that the release uses for HCP-Aging.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--root", type=Path, required=True, help="folder with the six files")
    parser.add_argument("--target", required=True, help="name for the labels, such as sex or age")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--tr", type=float, default=0.8, help="repetition time, seconds")
    parser.add_argument("--prefix", default="hca450", help="first part of the file names")
    parser.add_argument(
        "--roi_labels",
        type=Path,
        help="data-set folder or text file to take ROI names from (default: ROI-001, ...)",
    )
    args = vars(parser.parse_args())
    out = args.pop("out")
    import_hcpa(args.pop("root"), out, **args)
    print(f"{out} is written.")


if __name__ == "__main__":
    run_main(main)
