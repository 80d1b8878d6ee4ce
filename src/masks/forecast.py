"""Mode ``forecast``: some ROIs are visible at first, all ROIs at the end are to be predicted."""

from dataclasses import dataclass

import numpy as np

from ..utils.errors import UserError
from .batch import MaskBatch, block, random_order, random_words, whole_counts
from .scales import Scale, check_min_keep, check_scale, size


@dataclass(frozen=True)
class ForecastMasks:
    """Context: random ROIs at the first P - k patches; targets: all ROIs at the last k (method 10).

    Args:
        n_rois, n_patches: R and P.
        forecast_roi_scale: (min, max) fraction of the ROIs that are visible.
        forecast_patches: k.
        min_keep: fewest context tokens.

    Raises:
        UserError: fractions that are none, no patch left to be visible or to be predicted, or a
            context that can be below ``min_keep``.
    """

    n_rois: int
    n_patches: int
    forecast_roi_scale: Scale = (0.5, 0.5)
    forecast_patches: int = 1
    min_keep: int = 4

    def __post_init__(self) -> None:
        check_scale("forecast_roi_scale", self.forecast_roi_scale)
        if not 1 <= self.forecast_patches < self.n_patches:
            raise UserError(
                f"mask.forecast_patches is {self.forecast_patches}: data.crop_size and "
                f"mask.patch_size give {self.n_patches} patches, of which at least one must be "
                f"visible and one predicted, so it must lie between 1 and {self.n_patches - 1}."
            )
        remedy = ", raise mask.forecast_roi_scale or lower mask.forecast_patches"
        least = size(self.forecast_roi_scale, self.n_rois, 0.0)
        check_min_keep(self.min_keep, least, self.n_patches - self.forecast_patches, remedy)

    @property
    def words_per_sample(self) -> int:
        """One word per ROI."""
        return whole_counts(self.n_rois)

    def sizes(self, generator: np.random.Generator) -> int:
        """Draw the number of visible ROIs, once for a batch."""
        return size(self.forecast_roi_scale, self.n_rois, generator.random())

    def place(self, sizes: int, batch_size: int, generator: np.random.Generator) -> MaskBatch:
        """Draw the ROIs of each sample; beta is the future of visible ROIs, gamma of the others."""
        words = random_words(self, batch_size, generator)
        first_tokens = random_order(words[:, : self.n_rois]) * self.n_patches  # [B, R]
        visible, others = np.split(first_tokens, [sizes], axis=1)
        past, future = np.split(np.arange(self.n_patches), [-self.forecast_patches])
        return MaskBatch(
            block(visible, past), {"beta": block(visible, future), "gamma": block(others, future)}
        )
