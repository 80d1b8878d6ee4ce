"""The fine-tuned network: encoder, mean of all tokens, LayerNorm, linear head (method 7)."""

from timm.layers import global_pool_nlc, trunc_normal_
from torch import Tensor, nn

from .layers import LAYER_NORM
from .vision_transformer import VisionTransformer

# As in MAE: a head that starts near zero when everything is trained, a larger one for a probe.
_FINE_TUNE_HEAD_STD = 2e-5


_PROBE_HEAD_STD = 0.01


class DownstreamViT(nn.Module):
    """Class logits, or standardised targets, of clips: ``[B, 1, R, T]`` -> ``[B, C]``.

    Parameter names are those of the release's fine-tuned files: ``encoder.*``, ``fc_norm.*``,
    ``head.*``.

    Args:
        encoder: built with the drop path rate and the activation checkpointing wanted.
        n_outputs: C; classes, or 1 for regression.
        patch: average the tokens of this time patch only (the scored one of an event), not all.
        linear_probe: the published probe: only the head is trained, behind a BatchNorm without
            affine parameters, and the encoder stays in evaluation mode.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        n_outputs: int,
        *,
        patch: int | None = None,
        linear_probe: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.patch = patch
        self.linear_probe = linear_probe
        self.fc_norm = LAYER_NORM(encoder.embed_dim)
        linear = nn.Linear(encoder.embed_dim, n_outputs)
        trunc_normal_(linear.weight, std=_PROBE_HEAD_STD if linear_probe else _FINE_TUNE_HEAD_STD)
        nn.init.zeros_(linear.bias)
        self.head: nn.Module = linear
        if linear_probe:
            norm = nn.BatchNorm1d(encoder.embed_dim, affine=False, eps=1e-6)
            self.head = nn.Sequential(norm, linear)
            self.encoder.requires_grad_(False)
            self.fc_norm.requires_grad_(False)

    @property
    def n_outputs(self) -> int:
        """C."""
        linear = self.head[-1] if isinstance(self.head, nn.Sequential) else self.head
        return linear.out_features

    def train(self, mode: bool = True) -> "DownstreamViT":
        """Training mode; under ``linear_probe`` for the head only."""
        super().train(mode)
        if self.linear_probe:
            self.encoder.eval()
        return self

    def forward_features(self, x: Tensor) -> Tensor:
        """Clip features ``[B, D]``: LayerNorm of the mean of the tokens; none is a class token."""
        tokens = self.encoder(x)
        if self.patch is not None:
            tokens = tokens.unflatten(1, self.encoder.num_patches_2d)[:, :, self.patch]
        return self.fc_norm(global_pool_nlc(tokens, "avg", num_prefix_tokens=0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))

    def no_weight_decay(self) -> set[str]:
        """The encoder's, and the gradient projection, whose output is rescaled to [-1, 1]."""
        projection = "pos_embed_proj.predictor_pos_embed_proj.weight"
        return {f"encoder.{name}" for name in {projection, *self.encoder.no_weight_decay()}}

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Layers for ``timm.optim.param_groups_layer_decay``, as in MAE.

        Layer 0 holds patches, positions and the attention bias of all blocks, layer i block i - 1,
        and the last one what comes after: the encoder's norm, ``fc_norm`` and the head. Without
        this method, or with names that never match (the release, method 8.6), every layer gets the
        full learning rate.
        """
        stem = r"^encoder\.(?:patch_embed|pos_embed_proj|attention_bias)"
        block = r"^encoder\.blocks" if coarse else r"^encoder\.blocks\.(\d+)"
        return {"stem": stem, "blocks": block}
