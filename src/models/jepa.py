"""The pretraining objective: predict the target encoder's output at hidden tokens (method 5)."""

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..utils.data_parallel import clear_gradients, data_parallel, no_sync
from ..utils.distributed import Ranks
from .centered_targets import CenteredTargets
from .objective import PUBLISHED, Objective, hidden_signal
from .regularizers import between_clips, draw_directions, sigreg, vicreg


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
    """The published loss: smooth-L1 between prediction and target, over tokens and features."""
    return Networks(encoder, predictor, target_encoder).loss(x, masks_enc, masks_pred)[0]


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
        objective: what is minimised; the predictor needs a signal head where it predicts that.

    Attributes:
        encoder, predictor, target_encoder: the bare modules, whatever :meth:`compile` and
            :meth:`distribute` do: these are saved, loaded, measured and averaged.
        centering: running statistics of the targets, where the objective has these centred.
    """

    def __init__(
        self,
        encoder: nn.Module,
        predictor: nn.Module,
        target_encoder: nn.Module,
        objective: Objective = PUBLISHED,
    ) -> None:
        self.encoder, self.predictor, self.target_encoder = encoder, predictor, target_encoder
        self.objective = objective
        self.centering: CenteredTargets | None = None
        if objective.targets == "centered":
            device = next(encoder.parameters()).device
            self.centering = CenteredTargets(encoder.num_patches, encoder.embed_dim).to(device)
        self._loss: nn.Module = _Loss(objective, encoder, predictor, target_encoder, self.centering)
        self._distributed = False

    def compile(self) -> None:
        """Compile the loss; before :meth:`distribute`."""
        # Block sizes change from batch to batch: one dynamic graph in place of many fixed ones.
        self._loss.compile(dynamic=True)

    def distribute(self, ranks: Ranks, accumulation_steps: int) -> None:
        """Average the gradients of :meth:`loss` over the processes of ``ranks``."""
        self._loss = data_parallel(self._loss, ranks, accumulation_steps)
        self._distributed = ranks.world_size > 1

    def loss(
        self, x: Tensor, masks_enc: Tensor, masks_pred: Tensor, step: int = 0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of these networks, and its parts by their columns where it has several.

        Args:
            x: ``[B, 1, R, T]`` normalised runs.
            masks_enc: LongTensor ``[B, K]``, the context tokens.
            masks_pred: LongTensor ``[B, Q]``, the target tokens.
            step: the optimizer step, which random directions of a regularizer depend on.
        """
        directions = None
        if self.objective.regularizer == "sigreg":
            directions = draw_directions(
                self.encoder.embed_dim, self.objective.seed, step, x.device
            )
        return self._loss(x, masks_enc, masks_pred, directions)

    def no_sync(self) -> AbstractContextManager:
        """Context of a micro-step whose gradients are exchanged later (method 8.11)."""
        return no_sync(self._loss)

    def clear_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Forget the gradients of the step that ``optimizer`` has taken."""
        clear_gradients(self._loss, optimizer)

    def update_target(self, momentum: float) -> None:
        """:func:`update_target_encoder` of these networks, and statistics of their targets."""
        update_target_encoder(self.target_encoder, self.encoder, momentum)
        if self.centering is not None:
            self.centering.update(self._distributed)

    def as_features(self, prediction: Tensor, masks_pred: Tensor) -> Tensor:
        """What a prediction ``[B, Q, D]`` says of :func:`jepa_targets`, centred or not."""
        if self.centering is None:
            return prediction
        return self.centering.restore(prediction, masks_pred)


class _Loss(nn.Module):
    """The loss as one module, so that it is compiled and distributed as a whole."""

    def __init__(
        self,
        objective: Objective,
        encoder: nn.Module,
        predictor: nn.Module,
        target_encoder: nn.Module,
        centering: CenteredTargets | None,
    ) -> None:
        super().__init__()
        # The predictor after the encoder: DistributedDataParallel sends gradients in the reverse of
        # this order, which is the order in which the backward pass finishes them.
        self.target_encoder, self.encoder, self.predictor = target_encoder, encoder, predictor
        self.objective, self.centering = objective, centering

    def forward(
        self, x: Tensor, masks_enc: Tensor, masks_pred: Tensor, directions: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        parts = self.parts(x, masks_enc, masks_pred, directions)
        logged = zip(self.objective.logged, parts.values(), strict=False)
        return self.objective.total(parts), {name: part.detach() for name, part in logged}

    def parts(
        self, x: Tensor, masks_enc: Tensor, masks_pred: Tensor, directions: Tensor | None
    ) -> dict[str, Tensor]:
        """Parts of the loss by their names, before they are weighted.

        The signal's error is the mean squared error over the hidden frames, in the units of ``x``.
        """
        objective = self.objective
        if objective.latent:  # first: what it needs is free again before activations are kept
            target = jepa_targets(self.target_encoder, x, masks_pred)
            if self.centering is not None:
                target = self.centering(target, masks_pred)
        parts = {}
        seen = self.encoder(x, masks_enc)
        features = self.predictor.features(seen, masks_enc, masks_pred)
        if objective.latent:
            prediction = self.predictor.predictor_proj(features)
            parts["latent"] = objective.latent_error(prediction, target)
        if objective.signal:
            signal = self.predictor.signal_head(features)
            parts["signal"] = F.mse_loss(signal, hidden_signal(x, masks_pred, signal.shape[-1]))
        if objective.regularizer != "none":
            parts["regularizer"] = self.penalty(seen, masks_enc, directions)
        return parts

    def penalty(self, seen: Tensor, masks_enc: Tensor, directions: Tensor | None) -> Tensor:
        """The regularizer of context features ``seen`` ``[B, K, D]``, in float32 or better."""
        with torch.autocast(seen.device.type, enabled=False):
            seen = seen.to(torch.promote_types(seen.dtype, torch.float32))
            deviation, shared = between_clips(seen, masks_enc, self.encoder.num_patches)
            if directions is None:
                return vicreg(deviation, shared)
            return sigreg(deviation, shared, directions)
