"""Features of the ROIs from a CSV: gradients or centroids, checked against the data."""

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.errors import PACKAGE, UserError
from .folder import DataFolder
from .folder.fingerprint import describe_change, runs_fingerprint

logger = logging.getLogger(__name__)


def load_gradients(
    path: str | Path,
    n_rois: int,
    n_components: int | None = None,
    roi_labels: Sequence[str] | None = None,
    kind: str | None = None,
    training_data: DataFolder | None = None,
) -> np.ndarray:
    """Read a CSV of gradients or centroids and check it, float32 ``[R, G]``.

    Args:
        path: comma-separated numbers, one row per ROI, no header.
        n_rois: rows it must have.
        n_components: columns to keep, the first ones; all by default.
        roi_labels: ROIs of the data. They must be those of the JSON beside the file, in that order,
            if there is one (the published file comes without).
        kind: "gradients" or "centroids", as that JSON must say; centroids have 3 columns.
        training_data: the folder of a pretraining run. If that JSON is there and is of
            gradients, they must have been computed from the folder's training runs. Not for an
            evaluation, which takes the gradients of the pretraining to other people.

    Raises:
        UserError: if the file is missing, not such numbers, of other ROIs or of other people.
    """
    path = Path(path)
    try:
        values = np.loadtxt(path, delimiter=",", dtype=np.float64, ndmin=2)
    except OSError as error:
        why = f"cannot be read ({error.strerror or error})" if path.exists() else "does not exist"
        command = _command(path, training_data, centroids=kind == "centroids")
        raise UserError(f"{path} {why}. Make it with: {command}") from error
    except ValueError as error:
        raise UserError(
            f"{path} must hold comma-separated numbers, one row per ROI and no header: {error}"
        ) from error
    if len(values) != n_rois:
        raise UserError(
            f"{path} has {len(values)} rows, but the data have {n_rois} ROIs. One row per ROI is "
            "needed: use the gradients of this parcellation."
        )
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0] + 1
        raise UserError(f"{path}, line {row}, column {column}: the value is NaN or infinite.")
    if n_components is not None and values.shape[1] < n_components:
        raise UserError(f"{path} has {values.shape[1]} columns; {n_components} are asked for.")
    if not np.ptp(values, axis=0).any():
        raise UserError(f"{path}: every ROI has the same values, so they say nothing about it.")
    if kind == "centroids" and values.shape[1] != 3:
        raise UserError(f"{path} has {values.shape[1]} columns; centroids have 3 (x, y, z in mm).")
    sidecar = path.with_suffix(".json")
    if sidecar.exists():
        description = _check_sidecar(sidecar, roi_labels, kind)
        if training_data is not None and description["kind"] == "gradients":
            _check_people(path, description, training_data)
    return values[:, :n_components].astype(np.float32)


def _check_sidecar(
    sidecar: Path, roi_labels: Sequence[str] | None, kind: str | None
) -> dict[str, Any]:
    """Return the content of the JSON; a :class:`UserError` unless it fits data and ``kind``."""
    try:
        description = json.loads(sidecar.read_text(encoding="utf-8"))
        labels, is_kind = description["roi_labels"], description["kind"]
        split = description.get("split", "train")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{sidecar} does not say kind and roi_labels: {error!r}") from error
    if kind is not None and is_kind != kind:
        raise UserError(
            f"{sidecar} says that these are {is_kind}, but {kind} are needed "
            "(meta.add_w: mapping takes gradients, anatomical takes centroids)."
        )
    if split != "train":
        logger.warning("%s: computed from the %s split, not from train (method 2)", sidecar, split)
    if roi_labels is None:
        return description
    if len(labels) != len(roi_labels):
        raise UserError(f"{sidecar} lists {len(labels)} ROIs, the data have {len(roi_labels)}.")
    for row, (here, there) in enumerate(zip(labels, roi_labels, strict=True), start=1):
        if here != there:
            raise UserError(
                f"{sidecar}: row {row} is ROI '{here}', in the data it is '{there}'. The rows must "
                "be in the order of the data: compute the gradients from this folder."
            )
    return description


def _check_people(path: Path, description: Mapping[str, Any], folder: DataFolder) -> None:
    """Refuse gradients that were not computed from the training runs of ``folder``."""
    rows = folder.rows("train")
    if description.get("fingerprint") == runs_fingerprint(folder, rows):
        return
    change = f"{path.with_suffix('.json').name} does not say of which runs they are"
    if "fingerprint" in description:
        was = (description["n_runs"], description["n_participants"])
        change = describe_change(was, (len(rows), folder.runs.loc[rows].participant_id.nunique()))
    command = _command(path, folder, description.get("settings", {}).get("n_components"))
    raise UserError(
        f"{path} was not computed from the training runs of {folder.path}: {change}. Compute it "
        f"anew: {command} (to use gradients of other people on purpose, give a copy of the CSV "
        "without its JSON)"
    )


def _command(
    path: Path,
    folder: DataFolder | None,
    n_components: int | None = None,
    centroids: bool = False,
) -> str:
    """The command that makes ``path`` from ``folder``, a placeholder where that is not known."""
    place = "FOLDER" if folder is None else shlex.quote(str(folder.path))
    command = f"python -m {PACKAGE}.datasets.prepare.gradients --data_dir {place}"
    if centroids:
        command += " --centroids_from ATLAS.nii.gz"
    if n_components:
        command += f" --n_components {n_components}"
    usual = "centroids.csv" if centroids else "gradients.csv"
    if folder is None or path.resolve() != (folder.path / usual).resolve():
        command += f" --out {shlex.quote(str(path))}"
    return command
