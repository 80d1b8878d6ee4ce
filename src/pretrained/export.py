"""Write any checkpoint as safetensors + JSON: `python downstream_eval.py export`.

The folder can be given back as ``--load_path``, loaded by ``BrainJEPAHub.from_pretrained`` and
pushed to a hub (``src/pretrained/hub.py``).
"""

import argparse
import logging
from pathlib import Path

from ..utils.errors import UserError
from ..utils.files import naming
from .arguments import add_checkpoint_arguments, load_from_arguments
from .hub import BrainJEPAHub

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``downstream_eval.py export``."""
    add_checkpoint_arguments(parser)
    parser.add_argument("--out", required=True, help="folder to write")


def run(arguments: argparse.Namespace) -> Path:
    """Write the folder; return its path.

    Raises:
        UserError: if the checkpoint cannot be read, or the folder holds something else.
    """
    out = Path(arguments.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: it exists and is not an empty folder.")
    model = BrainJEPAHub.from_encoder(load_from_arguments(arguments))
    with naming(out):
        model.save_pretrained(out)
    logger.info("wrote %s", out)
    return out
