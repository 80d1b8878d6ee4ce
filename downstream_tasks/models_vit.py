"""The fine-tuned network: encoder, mean of all tokens, LayerNorm, linear head (method 7)."""

from torch import Tensor

from src.models.downstream_vit import DownstreamViT
from src.pretrained.encoder import Pretrained
from src.utils.checkpoint import load_network
from src.utils.errors import UserError


def fine_tuned_model(pretrained: Pretrained) -> DownstreamViT:
    """The network of a fine-tuned checkpoint, ours or the release's, ready for inference.

    Raises:
        UserError: if the checkpoint was not fine-tuned, or its head is of another kind.
    """
    head = pretrained.head
    linear_probe = "head.1.weight" in head
    last = "head.1.weight" if linear_probe else "head.weight"
    if last not in head:
        raise UserError(
            f"{pretrained.path} is not a fine-tuned checkpoint: it has no linear head "
            f"({', '.join(head) or 'an encoder only'}). Fine-tune first, without --eval."
        )
    model = DownstreamViT(
        pretrained.trainable_copy(),
        head[last].shape[0],
        patch=(pretrained.task or {}).get("patch"),
        linear_probe=linear_probe,
    )
    load_network(model, _whole_state(pretrained), pretrained.path, "fine-tuned model")
    return model.eval().requires_grad_(False)


def _whole_state(pretrained: Pretrained) -> dict[str, Tensor]:
    encoder = pretrained.encoder.state_dict()
    return {f"encoder.{name}": value for name, value in encoder.items()} | pretrained.head
