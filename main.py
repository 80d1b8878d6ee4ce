"""Pretrain Brain-JEPA: ``python main.py --fname CONFIG --devices cuda:0 cuda:1``."""

import argparse

from src import train
from src.config import load_config
from src.utils.distributed import default_devices, is_first_process, launch, parse_devices
from src.utils.errors import run_main
from src.utils.logging import setup_logging


def main() -> None:
    """Arguments -> config -> one worker per device."""
    parser = argparse.ArgumentParser(
        description="Pretrain Brain-JEPA as a YAML config says, one process per device.",
        epilog="Several machines: start this under torchrun. Stop with SIGTERM or SIGUSR1 (the "
        "step is finished and a checkpoint written) and go on with --resume.",
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
    arguments = parser.parse_intermixed_args()
    # An override written right after the devices is read as one of them; no device holds a "=".
    devices = [name for name in arguments.devices if "=" not in name]
    overrides = arguments.overrides + [name for name in arguments.devices if "=" in name]
    setup_logging(main=is_first_process())
    config = load_config(arguments.fname, overrides)
    launch(train.main, parse_devices(devices), config, arguments.resume)


if __name__ == "__main__":
    run_main(main)
