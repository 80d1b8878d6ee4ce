"""Pretrain Brain-JEPA: ``python main.py --fname CONFIG --devices cuda:0 cuda:1``."""

from src.utils.parent_watch import begin_program

begin_program(__name__)

import argparse
import sys
from collections.abc import Sequence

from src import train
from src.config import Config, load_config
from src.utils.distributed import default_devices, is_first_process, launch, parse_devices
from src.utils.errors import run_main
from src.utils.flags import unknown_flag
from src.utils.logging import setup_logging

FLAGS = ("--fname", "--devices", "--resume")


def main() -> None:
    """Arguments -> config -> one worker per device."""
    fname, devices, resume, overrides = parse_arguments(sys.argv[1:])
    setup_logging(main=is_first_process())
    config = load_config(fname, overrides)
    launch(train.main, parse_devices(devices), config, resume)


def parse_arguments(arguments: Sequence[str]) -> tuple[str, list[str], bool, list[str]]:
    """Split the command line into config file, devices, whether to resume, and overrides."""
    parser = argparse.ArgumentParser(
        description="Pretrain Brain-JEPA as a YAML config says, one process per device.",
        epilog="Several machines: start this under torchrun. CTRL-C, SIGTERM or SIGUSR1 "
        "finishes the step, writes a checkpoint and ends with 130, 143 or 138; go on by --resume.",
    )
    parser.add_argument("--fname", required=True, metavar="YAML", help="config, see configs/")
    parser.add_argument(
        "--devices",
        nargs="+",
        default=default_devices(),
        metavar="DEVICE",
        help="cpu, cpu cpu, cuda:0 cuda:1, mps (default: the best single device)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the latest checkpoint of logging.folder"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override keys of the config"
    )
    parsed, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise unknown_flag(unknown[0], arguments, FLAGS, Config)
    # An override written right after the devices is read as one of them; no device holds a "=".
    devices = [name for name in parsed.devices if "=" not in name]
    overrides = parsed.overrides + [name for name in parsed.devices if "=" in name]
    return parsed.fname, devices, parsed.resume, overrides


if __name__ == "__main__":
    run_main(main)
