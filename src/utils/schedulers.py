"""Learning rate, weight decay and EMA momentum as functions of one counter: optimizer steps.

``step`` counts from 1, the first update, to ``total``, the last; resuming only has to set it.
"""

import math
from dataclasses import dataclass


def warmup_cosine(
    step: int, total: int, warmup: int, start: float, peak: float, final: float
) -> float:
    """Linear from ``start`` to ``peak`` at step ``warmup``, then cosine to ``final``."""
    if step < warmup:
        return start + (peak - start) * step / warmup
    return cosine(step - warmup, max(1, total - warmup), peak, final)


def cosine(step: int, total: int, first: float, final: float) -> float:
    """Half a cosine from ``first`` at step 0 to ``final`` at step ``total``."""
    progress = min(1.0, step / total)
    return final + (first - final) * 0.5 * (1 + math.cos(math.pi * progress))


def linear(step: int, total: int, first: float, final: float) -> float:
    """Straight from ``first`` at step 1 to ``final`` at step ``total``."""
    return first + (final - first) * min(1.0, (step - 1) / max(1, total - 1))


@dataclass(frozen=True)
class Schedule:
    """The three schedules of a run (spec 5, 7, 8.3), each read at the step about to be taken.

    Attributes:
        total: optimizer steps of the run, times ``ipe_scale``.
        warmup: optimizer steps of linear warm-up of the learning rate.
    """

    total: int
    warmup: int
    start_lr: float
    peak_lr: float
    final_lr: float
    first_weight_decay: float
    final_weight_decay: float
    ema: tuple[float, float]

    def lr(self, step: int) -> float:
        """Learning rate of update ``step``."""
        return warmup_cosine(
            step, self.total, self.warmup, self.start_lr, self.peak_lr, self.final_lr
        )

    def weight_decay(self, step: int) -> float:
        """Weight decay of update ``step``."""
        return cosine(step, self.total, self.first_weight_decay, self.final_weight_decay)

    def momentum(self, step: int) -> float:
        """EMA momentum after update ``step``: the last one is exactly ``ema[1]``."""
        return linear(step, self.total, *self.ema)
