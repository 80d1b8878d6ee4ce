"""Learning rate, weight decay and EMA momentum as functions of one counter: optimizer steps.

``step`` counts from 1, the first update, to ``total``, the last; resuming only has to set it.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from ``first`` at step 0 to ``final`` at step ``total``."""

    total: int
    first: float
    final: float

    def __call__(self, step: int) -> float:
        progress = min(1.0, step / self.total)
        return self.final + (self.first - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class WarmupCosine:
    """Linear from ``start`` to ``peak`` at step ``warmup``, then cosine to ``final``."""

    total: int
    warmup: int
    start: float
    peak: float
    final: float

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.start + (self.peak - self.start) * step / self.warmup
        falling = Cosine(max(1, self.total - self.warmup), self.peak, self.final)
        return falling(step - self.warmup)


@dataclass(frozen=True)
class Linear:
    """Straight from ``first`` at step 1 to ``final`` at step ``total``."""

    total: int
    first: float
    final: float

    def __call__(self, step: int) -> float:
        progress = min(1.0, (step - 1) / max(1, self.total - 1))
        return self.first + (self.final - self.first) * progress


@dataclass(frozen=True)
class Schedule:
    """The three schedules of pretraining (method 5, 7, 8.3), read at the step about to be taken.

    Attributes:
        lr: learning rate.
        weight_decay: of the parameters that are decayed.
        momentum: of the target encoder after the step; after the last one exactly ``final``.
    """

    lr: WarmupCosine
    weight_decay: Cosine
    momentum: Linear
