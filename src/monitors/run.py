"""The monitors of a run."""

from collections.abc import Mapping
from typing import Any

import torch

from ..config import Config
from ..datasets.clip_input import ClipInput
from ..models.jepa import Networks
from . import latent, signal
from .clips import Autocast, FixedClips

COLUMNS = (*signal.COLUMNS, *latent.COLUMNS)


def columns_of(measurement: Mapping[str, Any]) -> dict[str, float]:
    """Return what a measurement has of :data:`COLUMNS`: an older one may have less."""
    return {name: measurement[name] for name in COLUMNS if name in measurement}


class Monitors:
    """The monitors of a run: the same clips, masks and questions at every measurement.

    Args:
        config: names the split of the held-out clips, their number and that of training clips.
        clip_input: how runs become clips, as in training.

    Raises:
        UserError: if a split has no runs.
    """

    def __init__(self, config: Config, clip_input: ClipInput) -> None:
        self.held_out = FixedClips(config, config.logging.monitor_split, clip_input)
        self.training = FixedClips(config, "train", clip_input)
        self.masks = latent.fixed_masks(config)
        self.grid = config.grid
        self.questions = {
            "signal_r2": signal.imputation(self.grid, config.meta.seed),
            "forecast_r2": signal.forecast(self.grid),
        }

    def measure(
        self, networks: Networks, device: torch.device, autocast: Autocast
    ) -> dict[str, Any]:
        """Measure ``networks``: what :meth:`measure_signal` returns and the latent columns."""
        clips = (self.training, self.held_out)
        latents = latent.measure(networks, *clips, self.masks, device, autocast)
        return self.measure_signal(networks, device, autocast) | latents

    def measure_signal(
        self, networks: Networks, device: torch.device, autocast: Autocast
    ) -> dict[str, Any]:
        """Measure what ``networks`` know of hidden signal; see :mod:`.signal`.

        Returns:
            ``signal_r2`` and ``forecast_r2``; ``people``: the former of each held-out person;
            ``clips``: a name for the clips, as only measurements on the same ones can be compared.
        """
        errors = {
            name: signal.measure(
                networks, self.training, self.held_out, questions, self.grid, device, autocast
            )
            for name, questions in self.questions.items()
        }
        return {
            **{name: of_clips.r2() for name, of_clips in errors.items()},
            "people": errors["signal_r2"].r2_of_people(self.held_out.ids),
            "clips": f"{self.training.name} {self.held_out.name}",
        }
