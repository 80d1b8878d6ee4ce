"""What is known of the ROIs beside their signal: network, hemisphere, place."""

import re

import numpy as np

from src.datasets.folder import DataFolder
from src.datasets.roi_features import load_gradients
from src.pretrained.encoder import Pretrained
from src.utils.errors import PACKAGE, UserError

_CORTICAL = re.compile(r"\d+networks_[lr]h_([a-z]+)", re.IGNORECASE)
_LEFT, _RIGHT = {"lh", "left"}, {"rh", "right"}
CENTROIDS_FILE = "centroids.csv"


def network_names(folder: DataFolder) -> list[str] | None:
    """Network of each ROI: as dataset.json says, or as Schaefer's labels do; ``None`` if neither.

    ROIs beside Schaefer's are called subcortical, as in the published order (method 1).
    """
    description = folder.description
    stated = description.get("networks") or description.get("provenance", {}).get("networks")
    if isinstance(stated, list) and len(stated) == folder.n_rois:
        return [str(name) for name in stated]
    found = [_CORTICAL.search(label) for label in folder.roi_labels]
    if not any(found):
        return None
    return ["Subcortical" if match is None else match[1] for match in found]


def needed_networks(folder: DataFolder) -> list[str]:
    """As :func:`network_names`; a :class:`UserError` where they are not known."""
    names = network_names(folder)
    if names is None:
        raise UserError(
            f"signal.hidden is networks, but the labels of {folder.path} name none (as "
            "7Networks_LH_Vis_1 does). Add a list `networks`, one name per ROI, to its "
            "dataset.json, or choose signal.hidden=random."
        )
    return names


def hemispheres(folder: DataFolder, pretrained: Pretrained) -> list[str | None]:
    """``left``, ``right`` or ``None`` for each ROI: by its label, or the x of its centroid.

    Raises:
        UserError: where neither tells.
    """
    sides = [_side(label) for label in folder.roi_labels]
    if {"left", "right"} <= set(sides):
        return sides
    centroids = None
    if pretrained.encoder_spec.add_w == "anatomical":
        centroids = pretrained.gradients.numpy()
    elif (path := folder.path / CENTROIDS_FILE).is_file():
        centroids = load_gradients(path, folder.n_rois, None, folder.roi_labels, "centroids")
    if centroids is None:
        raise UserError(
            f"signal.hidden is hemisphere, but the labels of {folder.path} name no side (LH_, "
            f"_R, left) and it holds no {CENTROIDS_FILE}. Make that with: python -m "
            f"{PACKAGE}.datasets.prepare.gradients --data_dir {folder.path} --centroids_from "
            "ATLAS.nii.gz, or choose signal.hidden=random."
        )
    return ["left" if x < 0 else "right" if x > 0 else None for x in centroids[:, 0]]


def _side(label: str) -> str | None:
    """Of the whole parts of a label; a small l or r may mean lateral or rostral."""
    for part in re.split(r"[^A-Za-z0-9]+", label):
        if part == "L" or part.lower() in _LEFT:
            return "left"
        if part == "R" or part.lower() in _RIGHT:
            return "right"
    return None


def roi_features(pretrained: Pretrained, csv_path: str | None, data_path: str) -> np.ndarray:
    """Gradients (or centroids) ``[R, G]`` of the checkpoint, else of ``data.gradient_csv_path``.

    Raises:
        UserError: if there are none: kernels need distances between ROIs.
    """
    if pretrained.gradients is not None:
        return pretrained.gradients.cpu().numpy()
    if csv_path is None:
        raise UserError(
            f"the checkpoint {pretrained.path} holds no gradients (add_w: origin), and gradient "
            "kernels need them. Give data.gradient_csv_path; make it with: python -m "
            f"{PACKAGE}.datasets.prepare.gradients --data_dir {data_path}"
        )
    return load_gradients(csv_path, pretrained.encoder_spec.crop_size[0])
