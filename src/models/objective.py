"""What a training step minimises: the published objective (method 5) and others (method 11.4)."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from .layers import apply_masks
from .regularizers import Regularizer

Kind = Literal["jepa", "mae", "hybrid"]
Loss = Literal["smooth_l1", "mse"]
Targets = Literal["layernorm", "centered"]


@dataclass(frozen=True)
class Objective:
    """The parts of the loss and their weights.

    Attributes:
        kind: ``jepa`` predicts the target encoder's output at the hidden tokens, ``mae`` their
            signal, by a head on the same predictor, and ``hybrid`` both.
        signal_weight: of the signal's error in ``hybrid``.
        loss: error of the latent prediction: ``smooth_l1`` (beta 1) or ``mse``.
        targets: the target encoder's output under a ``layernorm``, or that ``centered`` by
            :class:`src.models.centered_targets.CenteredTargets`.
        regularizer: penalty on context features that do not differ between clips.
        regularizer_weight: of it, beside the other parts.
        seed: of the random directions of ``sigreg``, with the step.
    """

    kind: Kind = "jepa"
    signal_weight: float = 1.0
    loss: Loss = "smooth_l1"
    targets: Targets = "layernorm"
    regularizer: Regularizer = "none"
    regularizer_weight: float = 1.0
    seed: int = 0

    @property
    def latent(self) -> bool:
        """Whether the target encoder's output is predicted."""
        return self.kind != "mae"

    @property
    def signal(self) -> bool:
        """Whether the signal of hidden patches is predicted."""
        return self.kind != "jepa"

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each part of the loss, by its name."""
        weights = {}
        if self.latent:
            weights["latent"] = 1.0
        if self.signal:
            weights["signal"] = self.signal_weight if self.latent else 1.0
        if self.regularizer != "none":
            weights["regularizer"] = self.regularizer_weight
        return weights

    @property
    def logged(self) -> tuple[str, ...]:
        """Columns of the parts beside their sum; none where the loss has one part."""
        weights = self.weights
        return tuple(f"loss_{part}" for part in weights) if len(weights) > 1 else ()

    def latent_error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Error of a latent prediction, averaged over tokens and features."""
        if self.loss == "mse":
            return F.mse_loss(prediction, target)
        return F.smooth_l1_loss(prediction, target)

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """Weighted sum of the parts; a weight of 1 costs nothing."""
        weights = self.weights
        first, *others = (
            part if weights[name] == 1 else weights[name] * part for name, part in parts.items()
        )
        return sum(others, start=first)


PUBLISHED = Objective()


def hidden_signal(x: Tensor, masks: Tensor, patch_size: int) -> Tensor:
    """Signal of the patches at ``masks`` ``[B, Q]`` of runs ``x`` ``[B, 1, R, T]``.

    Returns ``[B, Q, patch_size]``. Tokens are ROI-major (method 1).
    """
    patches = x.unflatten(-1, (-1, patch_size)).flatten(1, 3)  # [B, N, patch_size]
    return apply_masks(patches, masks)
