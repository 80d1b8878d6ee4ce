"""Where the ROIs lie: population gradients of connectivity, or anatomical centroids, as a CSV.

    python -m src.datasets.gradients --data_dir data/mine
    python -m src.datasets.gradients --data_dir data/mine --centroids_from atlas.nii.gz

The file has one row per ROI, in the folder's order, and no header (method 2). A JSON of the same
name beside it says which ROIs these are and what the numbers were computed from.
"""

import argparse
import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from src.datasets.fingerprint import describe_change, runs_fingerprint
from src.datasets.folder import DataFolder
from src.datasets.folder_format import SPLITS
from src.utils.errors import UserError, nearest, run_main
from src.utils.files import replacing
from src.utils.progress import progress_bar

# As published (method 2); GradientMaps.fit adds diffusion time 0 and alpha 0.5 by default.
SETTINGS = {"approach": "dm", "kernel": "normalized_angle"}
SPARSITY = 0.9
_MAX_CORRELATION = 1 - 1e-6  # Fisher z of 1 is infinite

logger = logging.getLogger(__name__)


# --- population gradients ------------------------------------------------------------------------


def group_connectivity(folder: DataFolder, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Return the group-average functional connectivity of a split, float64 [R, R], and its rows.

    Pearson correlations become Fisher z, are averaged over the runs of a person, then over people,
    and become correlations again; every person counts the same. A pair of ROIs is averaged over the
    runs in which both are good. One run is in memory at a time.

    Raises:
        UserError: if the split is empty or a pair of ROIs is good together in no run.
    """
    rows = folder.rows(split)
    if not rows.size:
        raise UserError(f"{folder.path} has no run in split {split} to compute gradients from.")
    shape = (folder.n_rois, folder.n_rois)
    total, people = np.zeros(shape), np.zeros(shape, dtype=np.int64)
    by_person = folder.runs.loc[rows].groupby("participant_id", sort=False).groups
    for person_rows in progress_bar(by_person.values(), desc="connectivity", unit="person"):
        z, runs = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        for row in person_rows:
            good = ~folder.bad_roi_mask(row)
            z += _fisher_z(folder.series(row))
            runs += np.outer(good, good)
        seen = runs > 0
        total[seen] += z[seen] / runs[seen]
        people += seen
    if not people.all():
        first, second = (folder.roi_labels[i] for i in np.argwhere(people == 0)[0])
        raise UserError(
            f"{folder.path}: ROIs '{first}' and '{second}' are good together in no run of split "
            f"{split}, so their connectivity is not known. "
            "Write the folder without ROIs that are always constant."
        )
    connectivity = np.tanh(total / people)
    np.fill_diagonal(connectivity, 1.0)
    return connectivity, rows


def _fisher_z(series: np.ndarray) -> np.ndarray:
    """Return arctanh of the Pearson correlations of the rows of [R, T]; 0 for bad, zero rows."""
    return np.arctanh(np.clip(correlation(series), -_MAX_CORRELATION, _MAX_CORRELATION))


def correlation(series: np.ndarray) -> np.ndarray:
    """Pearson correlations of the rows of [R, T], [R, R] of the same type; 0 for constant rows."""
    centred = series - series.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)
    return unit @ unit.T


def diffusion_gradients(
    connectivity: np.ndarray, n_components: int = 30
) -> tuple[np.ndarray, np.ndarray]:
    """Return BrainSpace's diffusion-map gradients [R, G] and their eigenvalues [G] (method 2).

    The sign of a gradient is BrainSpace's: the entry of the largest size is positive.

    Raises:
        UserError: if there are too few ROIs, for sparse rows or for this many gradients.
    """
    from brainspace.gradient import GradientMaps  # takes seconds, and is needed here only

    n_rois = len(connectivity)
    if int(n_rois * (1 - SPARSITY)) < 1:  # BrainSpace's count of the connections a row keeps
        raise UserError(
            f"{n_rois} ROIs are too few for gradients: each keeps its strongest tenth of "
            "connections, which is none. Use add_w origin or anatomical."
        )
    if not 1 <= n_components <= n_rois - 2:
        raise UserError(
            f"n_components is {n_components}; {n_rois} ROIs have from 1 to {n_rois - 2} gradients."
        )
    maps = GradientMaps(n_components=n_components, **SETTINGS, random_state=0)
    maps.fit(connectivity, sparsity=SPARSITY)
    return maps.gradients_, maps.lambdas_


def compute_gradients(
    folder: DataFolder,
    out: str | Path | None = None,
    n_components: int = 30,
    split: str = "train",
) -> Path:
    """Compute the gradients of a split and write them, with the JSON that describes them.

    Args:
        folder: the data.
        out: the CSV; by default gradients.csv in the folder.
        n_components: number of gradients, at most R - 2.
        split: whose connectivity is averaged. The training split: gradients of people who are
            tested later would tell the model about them.

    Returns:
        The path of the CSV.
    """
    connectivity, rows = group_connectivity(folder, split)
    gradients, eigenvalues = diffusion_gradients(connectivity, n_components)
    return _write(
        folder.path / "gradients.csv" if out is None else Path(out),
        gradients,
        folder,
        {
            "kind": "gradients",
            "split": split,
            "fingerprint": runs_fingerprint(folder, rows),
            "n_runs": len(rows),
            "n_participants": folder.runs.loc[rows, "participant_id"].nunique(),
            "connectivity": "Pearson, Fisher z averaged over runs, then over people",
            "settings": {**SETTINGS, "n_components": n_components, "sparsity": SPARSITY},
            "eigenvalues": eigenvalues.tolist(),
            "versions": {name: version(name) for name in ("brainspace", "numpy", "scipy")},
        },
    )


# --- anatomical centroids ------------------------------------------------------------------------


def roi_centroids(
    label_images: Sequence[str | Path],
    roi_labels: Sequence[str],
    lookup: str | Path | None = None,
) -> np.ndarray:
    """Return the centre of mass of each ROI in the image's world space (MNI), in mm, [R, 3].

    Args:
        label_images: NIfTI images of integers, 0 for background; several when the atlas has several
            parts, such as subcortex and cortex.
        roi_labels: the ROIs, in order.
        lookup: a TSV with the columns `index` and `name` (BIDS) that tells which number is which
            ROI; for one image. Without it the numbers of each image, ascending, one image after the
            other, must be as many as the ROIs, and are taken to be in their order.

    Raises:
        UserError: if an image or the table cannot be read, or ROIs and numbers do not match.
    """
    if not label_images or (lookup is not None and len(label_images) > 1):
        raise UserError("Give one label image, or several without a lookup table.")
    centroids = []
    for path in label_images:
        labels, affine = _read_labels(Path(path))
        numbers = np.unique(labels[labels != 0])
        if lookup is not None:
            numbers = _numbers_by_name(Path(lookup), roi_labels, numbers)
        voxels = ndimage.center_of_mass(np.ones(labels.shape), labels, numbers)
        centroids.append(nib.affines.apply_affine(affine, np.asarray(voxels)))
    centroids = np.concatenate(centroids)
    if len(centroids) != len(roi_labels):
        names = ", ".join(map(str, label_images))
        raise UserError(
            f"{names}: {len(centroids)} regions, but the data have {len(roi_labels)} ROIs. "
            "Give the atlas the data were made with, or a lookup table of its numbers."
        )
    return centroids


def _read_labels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        image = nib.load(path)
        values = np.squeeze(np.asarray(image.dataobj))
    except (OSError, nib.filebasedimages.ImageFileError) as error:
        raise UserError(f"{path} cannot be read as an image: {error}") from error
    if values.ndim != 3 or not np.array_equal(values, np.round(values)):
        raise UserError(f"{path} is not a 3-D image of whole numbers, one for each region.")
    return values.astype(np.int64), image.affine


def _numbers_by_name(path: Path, roi_labels: Sequence[str], present: np.ndarray) -> list[int]:
    try:
        table = pd.read_csv(path, sep="\t", dtype={"name": str})
        number = dict(zip(table["name"], table["index"].astype(int), strict=True))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not a TSV with columns index and name: {error}") from error
    for label in roi_labels:
        if label not in number:
            raise UserError(f"{path} has no region named '{label}'.{nearest(label, number)}")
        if number[label] not in present:
            raise UserError(f"{path}: '{label}' is {number[label]}, which the image does not hold.")
    return [number[label] for label in roi_labels]


# --- files ---------------------------------------------------------------------------------------


def _write(path: Path, values: np.ndarray, folder: DataFolder, sidecar: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savetxt(file, values, fmt="%.9e", delimiter=",")
    description = {
        **sidecar,
        "data_dir": str(folder.path),
        "atlas": folder.atlas,
        "roi_labels": folder.roi_labels,
    }
    with replacing(path.with_suffix(".json")) as file:
        file.write(json.dumps(description, indent=1, ensure_ascii=False).encode() + b"\n")
    return path


def load_gradients(
    path: str | Path,
    n_rois: int,
    n_components: int | None = None,
    roi_labels: Sequence[str] | None = None,
    kind: str | None = None,
    training_data: DataFolder | None = None,
) -> np.ndarray:
    """Read a CSV of gradients or centroids and check it, float32 [R, G].

    Args:
        path: comma-separated numbers, one row per ROI, no header.
        n_rois: rows it must have.
        n_components: columns to keep, the first ones; all by default.
        roi_labels: ROIs of the data. They must be those of the JSON beside the file, in that order,
            if there is one (the published file comes without).
        kind: "gradients" or "centroids", as that JSON must say; centroids have 3 columns.
        training_data: the folder of a pretraining run. If that JSON is there and speaks of
            gradients, they must have been computed from the folder's training runs. Not for an
            evaluation, which takes the gradients of the pretraining to other people.

    Raises:
        UserError: if the file is missing, not such numbers, of other ROIs or of other people.
    """
    path = Path(path)
    try:
        values = np.loadtxt(path, delimiter=",", dtype=np.float64, ndmin=2)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}). "
            "Make it with: python -m src.datasets.gradients --data_dir FOLDER"
        ) from error
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
    """Return what the JSON says, if it fits the data and what is asked for."""
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
    command = f"python -m src.datasets.gradients --data_dir {shlex.quote(str(folder.path))}"
    if n_components := description.get("settings", {}).get("n_components"):
        command += f" --n_components {n_components}"
    if path.resolve() != (folder.path / "gradients.csv").resolve():
        command += f" --out {shlex.quote(str(path))}"
    raise UserError(
        f"{path} was not computed from the training runs of {folder.path}: {change}. Compute it "
        f"anew: {command} (to use gradients of other people on purpose, give a copy of the CSV "
        "without its JSON)"
    )


# --- command line --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m src.datasets.gradients",
        description="Compute the positions of the ROIs: the gradients of the group's functional "
        "connectivity (BrainSpace diffusion maps), or the centroids of an atlas image.",
    )
    parser.add_argument("--data_dir", required=True, help="data-set folder (data/README.md)")
    parser.add_argument(
        "--out", help="CSV to write; default: gradients.csv or centroids.csv in the data folder"
    )
    parser.add_argument("--n_components", type=int, default=30, help="gradients; default: 30")
    parser.add_argument(
        "--split",
        default="train",
        choices=SPLITS,
        help="whose connectivity is averaged; default: train, so that no one tested is in it",
    )
    parser.add_argument(
        "--centroids_from",
        nargs="+",
        metavar="IMAGE",
        help="write MNI centroids (mm) of these label images instead, for add_w: anatomical; "
        "several images are taken one after the other, e.g. subcortex, then cortex",
    )
    parser.add_argument(
        "--lookup",
        metavar="TSV",
        help="columns index, name: which number of the image is which ROI",
    )
    args = parser.parse_args(arguments)
    folder = DataFolder(args.data_dir)
    if args.centroids_from:
        centroids = roi_centroids(args.centroids_from, folder.roi_labels, args.lookup)
        out = Path(args.out) if args.out else folder.path / "centroids.csv"
        images = [str(image) for image in args.centroids_from]
        path = _write(out, centroids, folder, {"kind": "centroids", "unit": "mm", "images": images})
    else:
        path = compute_gradients(folder, args.out, args.n_components, args.split)
    shape = load_gradients(path, folder.n_rois, roi_labels=folder.roi_labels).shape
    print(f"{path}: {shape[0]} ROIs x {shape[1]}; described in {path.with_suffix('.json')}")


if __name__ == "__main__":
    run_main(main)
