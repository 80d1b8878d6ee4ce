"""Fractions of ROIs and patches as whole numbers of them, and their checks."""

from collections.abc import Sequence

from ..utils.errors import UserError

Scale = Sequence[float]


def check_scale(name: str, scale: Scale, zero_allowed: bool = False) -> None:
    """Raise :class:`UserError` unless ``mask.<name>`` holds two fractions in order."""
    is_pair = len(scale) == 2 and all(isinstance(x, int | float) for x in scale)
    if not (is_pair and 0 <= scale[0] <= scale[1] <= 1 and (zero_allowed or scale[1] > 0)):
        maximum = "" if zero_allowed else " and max above 0"
        raise UserError(
            f"mask.{name} is {list(scale)}: expected two fractions [min, max] with "
            f"0 <= min <= max <= 1{maximum}."
        )


def check_min_keep(min_keep: int, n_rois: int, n_patches: int, remedy: str) -> None:
    """Raise :class:`UserError` if the smallest context, ROIs x patches, may be below ``min_keep``.

    ``remedy`` names the keys that make it larger.
    """
    if not 1 <= min_keep <= n_rois * n_patches:
        raise UserError(
            f"mask.min_keep is {min_keep}: the smallest context that may be drawn has {n_rois} "
            f"ROIs x {n_patches} patches, so it must lie between 1 and {n_rois * n_patches}; "
            f"lower min_keep{remedy}."
        )


def part(scale: Scale, n: int, u: float) -> int:
    """Whole part of a fraction of n, for u from 0 (the minimum) to 1 (the maximum)."""
    return int((scale[0] + u * (scale[1] - scale[0])) * n + 1e-6)  # .29 * 100 is 28.999...


def size(scale: Scale, n: int, u: float) -> int:
    """Rows or columns of a block: at least 1 if there may be any."""
    return max(part(scale, n, u), 1 if scale[1] else 0)
