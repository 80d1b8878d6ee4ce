"""ROI names for files that hold none."""

from pathlib import Path

from ...utils.errors import UserError
from ..folder import DataFolder


def load_roi_labels(path: Path | None, n_rois: int, atlas: str) -> tuple[str, tuple[str, ...]]:
    """Return (atlas, labels) for series of ``n_rois`` rows that come without names.

    Args:
        path: a data-set folder, whose atlas and labels are taken; or a text file with one label per
            line; or None for the names ROI-001, ROI-002, ...
        n_rois: number of rows of the series.
        atlas: name of the parcellation where ``path`` is not a folder.

    Raises:
        UserError: if the file cannot be read or has another number of labels.
    """
    if path is None:
        width = max(3, len(str(n_rois)))
        return atlas, tuple(f"ROI-{i:0{width}d}" for i in range(1, n_rois + 1))
    if path.is_dir():
        folder = DataFolder(path)
        atlas, labels = folder.atlas, folder.roi_labels
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--roi_labels {path}: {error}") from error
        labels = tuple(line.strip() for line in lines if line.strip())
    if len(labels) != n_rois:
        raise UserError(f"--roi_labels {path} has {len(labels)} labels, the series {n_rois} ROIs.")
    return atlas, labels
