"""What the networks say of hidden tokens: features that a read-out is fitted to.

The encoder sees the visible tokens and nothing else. Features of a hidden token are

- of the predictor: its last LayerNorm at that token, which all that it predicts is linear in;
- of the encoder: in a forecast the ROI's last visible token; in imputation the mean of the visible
  ROIs' tokens of the same patch, weighted by the gradient kernel that predicts the raw signal best.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from downstream_tasks.signal.clips import Batch
from downstream_tasks.signal.local import best_width
from downstream_tasks.signal.task import SignalTask
from src.models.vision_transformer import VisionTransformer, VisionTransformerPredictor


class Features(NamedTuple):
    """Of hidden tokens, ``[B, H, K, .]`` each; ``head`` is the signal head's prediction."""

    predictor: Tensor
    encoder: Tensor
    head: Tensor | None


class FrozenNetworks:
    """An encoder and a predictor, and the kernels by which encoder tokens are averaged."""

    def __init__(
        self,
        encoder: VisionTransformer,
        predictor: VisionTransformerPredictor,
        task: SignalTask,
    ) -> None:
        self.encoder, self.predictor = encoder.to(task.device), predictor.to(task.device)
        self._device = task.device
        self._weights = None
        if not task.is_forecast:
            width = best_width(task)
            self._weights = [of_hiding[width].to(task.device) for of_hiding in task.weights]

    @property
    def sizes(self) -> tuple[int, int]:
        """Widths of the features of predictor and encoder."""
        return self.predictor.predictor_norm.normalized_shape[0], self.encoder.embed_dim

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Features:
        hiding, size = batch.hiding, len(batch.shown)
        seen = hiding.visible_tokens.to(self._device).expand(size, -1)
        hidden = hiding.hidden_tokens.to(self._device).expand(size, -1)
        clips = batch.shown.nan_to_num(0.0)[:, None].to(self._device)
        tokens = self.encoder(clips, seen)  # [B, V * visible patches, D]
        features = self.predictor.features(tokens, seen, hidden)
        head = self.predictor.signal_head
        signal = None if head is None else head(features).float()
        grid = (len(hiding.rois), len(hiding.patches))
        by_roi = tokens.unflatten(1, (len(hiding.visible_rois), -1))
        if self._weights is None:
            of_encoder = by_roi[:, :, -1:].expand(-1, -1, grid[1], -1)
        else:
            of_encoder = torch.einsum("hv,bvpd->bhpd", self._weights[batch.number], by_roi)
        return Features(
            features.unflatten(1, grid).float().cpu(),
            of_encoder.float().cpu(),
            None if signal is None else signal.unflatten(1, grid).cpu(),
        )
