"""The pretraining objective: predict the target encoder's output at hidden tokens (method 5)."""

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..utils.data_parallel import clear_gradients, data_parallel, no_sync
from ..utils.distributed import Ranks


@torch.no_grad()
def jepa_targets(target_encoder: nn.Module, x: Tensor, masks: Tensor | None = None) -> Tensor:
    """Target features of runs ``x`` ``[B, 1, R, T]``: LayerNorm without affine.

    The target encoder sees the full grid. Its output is ``[B, N, D]``, or ``[B, Q, D]`` at the
    tokens of ``masks`` ``[B, Q]``, which spares the last block the others.
    """
    features = target_encoder(x) if masks is None else target_encoder(x, read_at=masks)
    return F.layer_norm(features, features.shape[-1:])


def jepa_loss(
    encoder: nn.Module,
    target_encoder: nn.Module,
    predictor: nn.Module,
    x: Tensor,
    masks_enc: Tensor,
    masks_pred: Tensor,
) -> Tensor:
    """Smooth-L1 between prediction and target, averaged over tokens and features.

    Args:
        x: ``[B, 1, R, T]`` normalised runs.
        masks_enc: LongTensor ``[B, K]``, the context tokens.
        masks_pred: LongTensor ``[B, Q]``, the target tokens.
    """
    target = jepa_targets(target_encoder, x, masks_pred)
    prediction = predictor(encoder(x, masks_enc), masks_enc, masks_pred)
    return F.smooth_l1_loss(prediction, target)


@torch.no_grad()
def update_target_encoder(target_encoder: nn.Module, encoder: nn.Module, momentum: float) -> None:
    """``target <- momentum * target + (1 - momentum) * encoder``, for all tensors at once."""
    targets, sources = list(target_encoder.parameters()), list(encoder.parameters())
    get_ema_multi_avg_fn(momentum)(targets, sources, None)


class Networks:
    """The three networks of the method, and what a training step asks of them.

    Args:
        encoder, predictor: trained.
        target_encoder: an average of the encoder's weights, never trained.

    Attributes:
        encoder, predictor, target_encoder: the bare modules, whatever :meth:`compile` and
            :meth:`distribute` do: these are saved, loaded, measured and averaged.
    """

    def __init__(self, encoder: nn.Module, predictor: nn.Module, target_encoder: nn.Module) -> None:
        self.encoder, self.predictor, self.target_encoder = encoder, predictor, target_encoder
        self._objective: nn.Module = _Objective(encoder, predictor, target_encoder)

    def compile(self) -> None:
        """Compile the loss; before :meth:`distribute`."""
        # Block sizes change from batch to batch: one dynamic graph in place of many fixed ones.
        self._objective.compile(dynamic=True)

    def distribute(self, ranks: Ranks, accumulation_steps: int) -> None:
        """Average the gradients of :meth:`loss` over the processes of ``ranks``."""
        self._objective = data_parallel(self._objective, ranks, accumulation_steps)

    def loss(self, x: Tensor, masks_enc: Tensor, masks_pred: Tensor) -> Tensor:
        """:func:`jepa_loss` of these networks."""
        return self._objective(x, masks_enc, masks_pred)

    def no_sync(self) -> AbstractContextManager:
        """Context of a micro-step whose gradients are exchanged later (method 8.11)."""
        return no_sync(self._objective)

    def clear_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Forget the gradients of the step that ``optimizer`` has taken."""
        clear_gradients(self._objective, optimizer)

    def update_target(self, momentum: float) -> None:
        """:func:`update_target_encoder` of these networks."""
        update_target_encoder(self.target_encoder, self.encoder, momentum)


class _Objective(nn.Module):
    """The loss as one module, so that it is compiled and distributed as a whole."""

    def __init__(self, encoder: nn.Module, predictor: nn.Module, target_encoder: nn.Module) -> None:
        super().__init__()
        # The predictor after the encoder: DistributedDataParallel sends gradients in the reverse of
        # this order, which is the order in which the backward pass finishes them.
        self.target_encoder, self.encoder, self.predictor = target_encoder, encoder, predictor

    def forward(self, x: Tensor, masks_enc: Tensor, masks_pred: Tensor) -> Tensor:
        return jepa_loss(
            self.encoder, self.target_encoder, self.predictor, x, masks_enc, masks_pred
        )
