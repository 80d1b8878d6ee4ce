"""Mode ``roi``: some ROIs are visible at all times, some of the others are to be predicted."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..utils.errors import UserError
from .batch import MaskBatch, block, random_order, random_words, whole_counts
from .scales import Scale, check_min_keep, check_scale, size


class RoiSizes(NamedTuple):
    """How many ROIs are context, and how many are targets."""

    visible: int
    target: int


@dataclass(frozen=True)
class RoiMasks:
    """Context and targets are disjoint random sets of ROIs, each at all patches (method 10).

    Args:
        n_rois, n_patches: R and P.
        roi_visible_scale: (min, max) fraction of the ROIs that are context.
        roi_target_scale: of the ROIs that are targets.
        min_keep: fewest context tokens.

    Raises:
        UserError: fractions that are none, that need more ROIs than there are, or that can give a
            context below ``min_keep``.
    """

    n_rois: int
    n_patches: int
    roi_visible_scale: Scale = (0.4, 0.4)
    roi_target_scale: Scale = (0.25, 0.25)
    min_keep: int = 4

    def __post_init__(self) -> None:
        check_scale("roi_visible_scale", self.roi_visible_scale)
        check_scale("roi_target_scale", self.roi_target_scale)
        most = self._sizes(1.0, 1.0)
        if sum(most) > self.n_rois:
            raise UserError(
                f"mask.roi_visible_scale is {list(self.roi_visible_scale)} and "
                f"mask.roi_target_scale {list(self.roi_target_scale)}: at most {most.visible} "
                f"visible and {most.target} target ROIs are more than the {self.n_rois} there are; "
                "the sum of their maxima must not be above 1."
            )
        least = self._sizes(0.0, 0.0)
        remedy = " or raise mask.roi_visible_scale"
        check_min_keep(self.min_keep, least.visible, self.n_patches, remedy)

    def _sizes(self, u_visible: float, u_target: float) -> RoiSizes:
        return RoiSizes(
            size(self.roi_visible_scale, self.n_rois, u_visible),
            size(self.roi_target_scale, self.n_rois, u_target),
        )

    @property
    def words_per_sample(self) -> int:
        """One word per ROI."""
        return whole_counts(self.n_rois)

    def sizes(self, generator: np.random.Generator) -> RoiSizes:
        """Draw both numbers of ROIs, once for a batch."""
        return self._sizes(*generator.random(2).tolist())

    def place(self, sizes: RoiSizes, batch_size: int, generator: np.random.Generator) -> MaskBatch:
        """Draw the ROIs of each sample."""
        words = random_words(self, batch_size, generator)
        first_tokens = random_order(words[:, : self.n_rois]) * self.n_patches  # [B, R]
        visible, others = np.split(first_tokens, [sizes.visible], axis=1)
        target, columns = others[:, : sizes.target], np.arange(self.n_patches)
        return MaskBatch(block(visible, columns), {"alpha": block(target, columns)})
