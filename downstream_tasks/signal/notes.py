"""What qualifies a table of the signal protocols, and what was hidden, in words."""

from collections.abc import Mapping, Sequence

import numpy as np

from downstream_tasks.cohort.clips import task_clip_input
from downstream_tasks.config import DownstreamConfig
from downstream_tasks.signal.evaluate import Row
from downstream_tasks.signal.hiding import Hiding
from src.pretrained.encoder import Pretrained

FILTERED_R2 = 0.8  # of the own past alone, from which on a forecast is that of a filter
_OWN_NORMALIZATION = ("zscore_sample", "zscore_roi")
_FILTER = "as after a band-pass filter: a forecast of such series says little about the brain"


def signal_settings(
    config: DownstreamConfig, settings: dict[str, str], hidings: Sequence[Hiding]
) -> dict[str, str]:
    """What was done; settings of other protocols' baselines and controls are left out."""
    kept = {k: v for k, v in settings.items() if k not in ("controls", "baselines of runs see")}
    hidden = hidings[0].name
    if config.protocol == "imputation":
        sizes = sorted({len(hiding.rois) for hiding in hidings})
        span = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        named = "; ".join(hiding.name for hiding in hidings)
        hidden = f"{config.signal.hidden} ROIs, {span} of {hidings[0].grid[0]} ({named})"
    if config.signal.noise:
        kept["noise added to what is seen"] = f"SD {config.signal.noise:g}, normalised units"
    return {"hidden": hidden, **kept}


def filter_notes(
    variants: Mapping[str, Sequence[Row]], without_noise: Row | None, noise: float
) -> list[str]:
    """Where the own past alone determines the series; ``without_noise`` is AR's row without it."""
    if without_noise is not None:
        r2 = np.nanmean(without_noise.scores.r2())
        filtered = f", {_FILTER}" if r2 > FILTERED_R2 else ""
        return [
            f"white noise (SD {noise:g}) is added to all that is seen, the same for every row; "
            f"without it each ROI's own past (AR) forecasts with R2 {r2:.3f}{filtered}"
        ]
    found = [row.scores for rows in variants.values() for row in rows if row.name == "ar"]
    if not any(np.nanmean(scores.r2()) > FILTERED_R2 for scores in found):
        return []
    return [
        f"each ROI's own past determines most of what is hidden (AR), {_FILTER}. signal.noise=0.1 "
        "adds noise to what is seen, which leaves what is more than the filter"
    ]


def normalization_notes(
    variants: Mapping[str, DownstreamConfig], pretrained: Pretrained
) -> list[str]:
    """Where the clip tells of what is hidden: its normalisation has seen all of it."""
    inputs = [task_clip_input(config.data, pretrained) for config in variants.values()]
    if inputs[0].normalization not in _OWN_NORMALIZATION:
        return []
    return [
        f"clips are normalised ({inputs[0].normalization}) by values of which some are hidden, for "
        "models and baselines alike: R2 is higher than a forecast or an imputation of raw signal "
        "would have"
    ]
