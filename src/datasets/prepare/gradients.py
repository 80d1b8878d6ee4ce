"""Where the ROIs lie: population gradients of connectivity, or anatomical centroids, as a CSV.

    python -m src.datasets.prepare.gradients --data_dir data/mine
    python -m src.datasets.prepare.gradients --data_dir data/mine --centroids_from atlas.nii.gz

The file has one row per ROI, in the folder's order, and no header (method 2). A JSON of the same
name beside it says which ROIs these are and what the numbers were computed from.
"""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from ...utils.errors import PACKAGE, UserError, nearest, run_main
from ...utils.files import replacing
from ..connectivity import group_connectivity
from ..folder import DataFolder
from ..folder.fingerprint import runs_fingerprint
from ..folder.format import SPLITS
from ..roi_features import load_gradients

# As published (method 2); GradientMaps.fit adds diffusion time 0 and alpha 0.5 by default.
SETTINGS = {"approach": "dm", "kernel": "normalized_angle"}
SPARSITY = 0.9

logger = logging.getLogger(__name__)


# --- population gradients ------------------------------------------------------------------------


def diffusion_gradients(
    connectivity: np.ndarray, n_components: int = 30
) -> tuple[np.ndarray, np.ndarray]:
    """Return BrainSpace's diffusion-map gradients ``[R, G]``, eigenvalues ``[G]`` (method 2).

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
        split: whose connectivity is averaged. Anything but the training split would leak
            information about held-out people into the model.

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
    """Return the centre of mass of each ROI in the image's world space (MNI), in mm, ``[R, 3]``.

    Args:
        label_images: NIfTI images of integers, 0 for background; several when the atlas has several
            parts, such as subcortex and cortex.
        roi_labels: the ROIs, in order.
        lookup: a TSV with the columns ``index`` and ``name`` (BIDS) that tells which number is
            which ROI; for one image. Without it the numbers of each image, ascending, one image
            after the other, must be as many as the ROIs, and are taken to be in their order.

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


# --- command line --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PACKAGE}.datasets.prepare.gradients",
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
        help="whose connectivity is averaged (default: train, so that no test person is in it)",
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
