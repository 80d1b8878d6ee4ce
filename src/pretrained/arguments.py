"""The flags that name a checkpoint and give what it does not state."""

import argparse

from ..models.layers import FUSED_ATTENTION
from ..models.pos_embed import POSITION_KINDS
from ..models.vision_transformer import SIZES
from .encoder import Pretrained
from .load import load_pretrained


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name a checkpoint and give what it does not state."""
    parser.add_argument(
        "--load_path", required=True, help="checkpoint file, folder of a run, or exported model"
    )
    parser.add_argument("--load_epoch", type=int, help="of a run's folder; default: the latest")
    parser.add_argument(
        "--network", default="target_encoder", choices=("target_encoder", "encoder")
    )
    stated = parser.add_argument_group(
        "model",
        "read from the checkpoint; needed only where it does not say, checked where it does",
    )
    stated.add_argument("--model_name", help=f"one of {', '.join(SIZES)}")
    stated.add_argument("--num_heads", type=int, help="attention heads, for sizes without a name")
    stated.add_argument("--crop_size", type=two_numbers, metavar="ROIS,FRAMES")
    stated.add_argument("--patch_size", type=int, help="frames")
    stated.add_argument("--add_w", choices=POSITION_KINDS)
    stated.add_argument("--gradient_csv_path", help="for checkpoints without gradients")
    stated.add_argument("--attn_mode", default="sdpa", choices=tuple(FUSED_ATTENTION))


def load_from_arguments(arguments: argparse.Namespace) -> Pretrained:
    """Load what the flags of :func:`add_checkpoint_arguments` name."""
    names = (
        "load_epoch", "model_name", "num_heads", "crop_size", "patch_size", "add_w",
        "gradient_csv_path", "attn_mode",
    )  # fmt: skip
    flags = {name: getattr(arguments, name) for name in names}
    return load_pretrained(arguments.load_path, which=arguments.network, **flags)


def two_numbers(text: str) -> tuple[int, int]:
    """``450,160`` or ``450x160``, of a flag."""
    try:
        rois, frames = (int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not like 450,160") from None
    return rois, frames
