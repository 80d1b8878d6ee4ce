"""What a fine-tuning costs: said before it starts, and in hours once an epoch has been measured."""

import logging
from collections.abc import Sequence
from datetime import timedelta

from downstream_tasks.config import DownstreamConfig

logger = logging.getLogger(__name__)


class TrainingCost:
    """Steps of all trainings of a run that are left.

    Args:
        steps: optimizer steps of each problem's training; every network takes them.
    """

    def __init__(self, config: DownstreamConfig, steps: Sequence[int]) -> None:
        networks = len(config.fine_tuned)
        self.left, self._timed, self._advice = networks * sum(steps), False, ""
        who = "the model"
        if networks > 1:
            who += f" and {networks - 1} controls" if networks > 2 else " and a control"
            self._advice = f"; evaluation.controls=frozen trains {len(steps)} of them"
        if len(steps) > 1:
            who += f", {len(steps)} times" + (" each" if networks > 1 else "")
        logger.info(
            "fine-tuning %d networks (%s), %d steps in all%s",
            networks * len(steps),
            who,
            self.left,
            self._advice,
        )

    def skip(self, steps: int) -> None:
        """Steps that an earlier run took."""
        self.left -= steps

    def count(self, steps: int, seconds: float) -> None:
        """Steps just taken, with their validation; the first time is what the rest goes by."""
        self.left -= steps
        if not self._timed and self.left:
            self._timed = True
            logger.info(
                "%d steps with their validation took %.3g s: about %s for the %d steps that are "
                "left%s",
                steps,
                seconds,
                timedelta(seconds=round(self.left * seconds / steps)),
                self.left,
                self._advice,
            )
