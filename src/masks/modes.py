"""The modes of masking by the name that ``meta.mask_mode`` and ``mask.mixed_modes`` give them."""

from .batch import MaskMode
from .forecast import ForecastMasks
from .multiblock import MultiblockMasks
from .roi import RoiMasks
from .spatiotemporal import SpatiotemporalMasks

MODES: dict[str, type[MaskMode]] = {
    "spatiotemporal": SpatiotemporalMasks,
    "multiblock": MultiblockMasks,
    "roi": RoiMasks,
    "forecast": ForecastMasks,
}
MIXED = "mixed"  # several of them, in turn
