"""Evaluate a checkpoint on labelled data.

python downstream_eval.py --config demo_state --load_path logs/quickstart/RUN
python downstream_eval.py --config hca_sex --downstream_task linear_probe --load_path CHECKPOINT
python downstream_eval.py embed --load_path CHECKPOINT --data_path data/mine --out out.parquet
python downstream_eval.py export --load_path CHECKPOINT --out FOLDER
python downstream_eval.py compare output_dirs

commands beside the evaluation, each with its own --help:
  embed    write embeddings of the runs of a data-set folder: .npz, .parquet, .csv, .tsv
  export   write any checkpoint as safetensors + JSON, for a model hub
  compare  join result folders into one table, and set checkpoint against checkpoint
"""

from src.utils.parent_watch import begin_program

begin_program(__name__)

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any, get_args

from downstream_tasks import main_finetune, main_fingerprint, main_linearprobe, main_signal
from downstream_tasks.config import SIGNAL_PROTOCOLS, DownstreamConfig, Protocol
from downstream_tasks.features import embed
from downstream_tasks.release import PROTOCOL_ALIASES, absent_switches
from downstream_tasks.report import compare
from downstream_tasks.report.markdown import results_markdown
from downstream_tasks.studies.several_targets import joined_table, run_targets
from downstream_tasks.task_files import load_tasks, read_tasks, task_names
from src.pretrained import export
from src.pretrained.arguments import two_numbers
from src.utils.distributed import default_devices, is_first_process, parse_devices
from src.utils.errors import UserError, nearest, run_main
from src.utils.flags import unknown_flag
from src.utils.logging import setup_logging
from src.utils.yaml_config import parse_override

logger = logging.getLogger(__name__)

# What is done beside an evaluation; each has flags of its own.
COMMANDS = {"embed": embed, "export": export, "compare": compare}
# Flags and the keys they set; those of the section of the protocol that is run have no dot.
KEYS = {
    "downstream_task": "protocol",
    "task": "data.type",
    "data_path": "data.data_path",
    "nb_classes": "data.nb_classes",
    "label_normalization": "data.label_normalization",
    "downsample": "data.downsample",
    "gradient_csv_path": "data.gradient_csv_path",
    "load_path": "model.load_path",
    "load_epoch": "model.load_epoch",
    "model_name": "model.model_name",
    "num_heads": "model.num_heads",
    "crop_size": "model.crop_size",
    "patch_size": "model.patch_size",
    "pred_depth": "model.pred_depth",
    "pred_emb_dim": "model.pred_emb_dim",
    "add_w": "model.add_w",
    "attn_mode": "model.attn_mode",
    "num_seed": "evaluation.num_seed",
    "resample_splits": "split.resample",
    "output_root": "output_root",
}
SWITCHES = (
    *("use_normalization", "downsample", "label_normalization"),
    *("gradient_checkpointing", "resample_splits"),
)
PROTOCOL_KEYS = ("batch_size", "epochs", "blr", "min_lr", "smoothing", "gradient_checkpointing")


def boolean(text: str) -> bool | str:
    """``true`` or ``false``; the release has some of these flags with a value, some without.

    An override that follows a switch is read as its value, and returned as it is.
    """
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if "=" in text:
        return text
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return values[text.lower()]


def epoch_number(text: str) -> int | None:
    """The number of an epoch; the release's default is an empty text, the latest."""
    return int(text) if text else None


def build_parser() -> argparse.ArgumentParser:
    """All flags; those that are not given leave the task file's value."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage="%(prog)s --config TASK --load_path CHECKPOINT [flags] [section.key=value ...]\n"
        "       %(prog)s {embed,export,compare} [flags]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        epilog="Everything else is a key of the task file (downstream_tasks/config.py lists them): "
        "section.key=value, which wins over flags. What a checkpoint states need not be given.\n"
        "With --data_make_fn, as in the release, an absent switch is off, whatever the files "
        "say:\n--use_normalization (data.normalization=none), --downsample, --label_normalization. "
        "With --config\nalone the task file decides.",
    )
    switch = {"nargs": "?", "const": True, "type": boolean, "metavar": "BOOL"}
    what = parser.add_argument_group("what is evaluated")
    what.add_argument("--config", help="task: a YAML file, or a name in configs/downstream; beside "
                      "--data_make_fn a file of settings for it")  # fmt: skip
    what.add_argument("--data_make_fn", help="the release's way to name a task, such as hca_sex; "
                      "absent switches are then off (see below)")  # fmt: skip
    what.add_argument("--downstream_task", choices=(*get_args(Protocol), *PROTOCOL_ALIASES),
                      help="the protocol; linprobe is linear_probe")  # fmt: skip
    what.add_argument("--task", choices=("classification", "regression"), help="kind of target")
    what.add_argument("--data_path", help="data-set folder, in place of the task's")
    what.add_argument("--nb_classes", type=int, help="number of classes, checked against the data")
    what.add_argument("--load_path", help="checkpoint, folder of a run, or exported model")
    what.add_argument(
        "--load_epoch", type=epoch_number, help="of a run's folder (default: the latest)"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--num_seed", type=int, help="runs (cv: repeats), reported as mean (SD)")
    how.add_argument("--resample_splits", **switch, help="new people in every part of every run")
    how.add_argument("--batch_size", type=int, help="clips; of linear_probe examples")
    how.add_argument("--epochs", type=int, help="of fine_tune and the two probes")
    how.add_argument("--blr", type=float, help="base learning rate, times batch size / 256")
    how.add_argument("--min_lr", type=float, help="where the cosine ends")
    how.add_argument("--smoothing", type=float, help="label smoothing, of classes")
    how.add_argument("--gradient_checkpointing", **switch, help="recompute to save memory")
    how.add_argument("--devices", nargs="+", default=default_devices(), metavar="DEVICE",
                     help="cpu, cuda:0 cuda:1, mps (default: the best one)")  # fmt: skip
    how.add_argument("--eval", action="store_true", default=False, dest="evaluate",
                     help="score again what an earlier run stored; train nothing")  # fmt: skip
    how.add_argument("--resume", action="store_true", default=False,
                     help="go on with a stopped fine-tuning, or add controls to it")  # fmt: skip
    how.add_argument("--output_root", help="results go to OUTPUT_ROOT/TASK/PROTOCOL")
    data = parser.add_argument_group("input")
    data.add_argument("--use_normalization", **switch, help="one z-score per clip, else none")
    data.add_argument("--downsample", **switch, help="every third frame, else every one")
    data.add_argument("--label_normalization", **switch, help="z-score regression targets")
    model = parser.add_argument_group("model", "checked against the checkpoint where it says")
    model.add_argument("--model_name", help="vit_tiny, vit_small, vit_base, vit_large")
    model.add_argument("--num_heads", type=int, help="attention heads, for sizes without a name")
    model.add_argument("--crop_size", type=two_numbers, metavar="ROIS,FRAMES")
    model.add_argument("--patch_size", type=int, help="frames")
    model.add_argument("--pred_depth", type=int, help="of the predictor, which is not used")
    model.add_argument("--pred_emb_dim", type=int, help="likewise its width")
    model.add_argument("--add_w", choices=("mapping", "origin", "anatomical"))
    model.add_argument("--gradient_csv_path", help="for checkpoints that do not hold gradients")
    model.add_argument("--attn_mode", choices=("normal", "sdpa", "flash_attn"))
    parser.add_argument("overrides", nargs="*", default=[], metavar="section.key=value")
    return parser


def parse_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """The flags that are given; empty ones, which the release's scripts pass, count as absent."""
    parser = build_parser()
    parsed, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        names = [name for name in parser._option_string_actions if name.startswith("--")]
        raise unknown_flag(unknown[0], arguments, names, DownstreamConfig)
    flags = {name: value for name, value in vars(parsed).items() if value not in ("", None)}
    # An override written right after the devices or a switch is read as theirs.
    overrides = flags["overrides"] + [name for name in flags["devices"] if "=" in name]
    for name, value in flags.items():
        if isinstance(value, str) and name in SWITCHES:
            overrides.append(value)
            flags[name] = True
    if command := next((name for name in overrides if name in COMMANDS), None):
        raise UserError(f"'{command}' is a command, and comes first: {command} [flags].")
    devices = [name for name in flags["devices"] if "=" not in name]
    return flags | {"devices": devices, "overrides": overrides}


def run_command(name: str, arguments: Sequence[str]) -> None:
    """Run one of :data:`COMMANDS` with its own flags."""
    if name not in COMMANDS:
        known = name in task_names() and f" The task of that name: --config {name}."
        raise UserError(
            f"no command '{name}'.{known or nearest(name, COMMANDS)} Commands: "
            f"{', '.join(COMMANDS)}; an evaluation begins with --config."
        )
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(
        prog=f"downstream_eval.py {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    command.run(parser.parse_args(arguments))


def configs_from_flags(flags: dict[str, Any]) -> list[DownstreamConfig]:
    """The task files that are named, with the flags over them: a config for each target."""
    sources = [flags[name] for name in ("data_make_fn", "config") if name in flags]
    if not sources:
        raise UserError("--config is missing: a task file, or a name in configs/downstream.")
    overrides = {key: flags[name] for name, key in KEYS.items() if name in flags}
    if "use_normalization" in flags:
        method = "zscore_sample" if flags["use_normalization"] else "none"
        overrides["data.normalization"] = method
    overrides |= dict(map(parse_override, flags["overrides"]))
    if "data_make_fn" in flags:
        overrides |= absent_switches(read_tasks(*sources), overrides)
    given = {name: flags[name] for name in PROTOCOL_KEYS if name in flags}
    return load_tasks(*sources, overrides=overrides, protocol_flags=given)


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments -> config -> one call."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    setup_logging()
    if arguments and not arguments[0].startswith("-") and "=" not in arguments[0]:
        run_command(arguments[0], arguments[1:])
        return
    flags = parse_flags(arguments)
    devices = parse_devices(flags["devices"])
    configs = configs_from_flags(flags)
    config = configs[0]
    if config.protocol != "fine_tune" or flags["evaluate"]:
        if len(devices) > 1:
            raise UserError(
                f"--devices names {len(devices)}: name one. Only the training of fine_tune is "
                "shared among devices."
            )
        if flags["resume"]:
            what = "--eval" if flags["evaluate"] else config.protocol
            raise UserError(
                f"--resume: {what} has no state to go on from; run it again without --resume."
            )
        if not is_first_process():
            return
    if len(configs) > 1:
        if found := run_targets(configs, devices, flags["evaluate"], flags["resume"]):
            print(joined_table(found), end="")
            print("\nWritten to " + ", ".join(str(path.parent) for path in found))
        return
    if config.protocol == "fine_tune":
        results = main_finetune.run(config, devices, flags["evaluate"], flags["resume"])
    elif config.protocol == "fingerprint":
        results = main_fingerprint.run(config, devices[0], flags["evaluate"])
    elif config.protocol in SIGNAL_PROTOCOLS:
        results = main_signal.run(config, devices[0], flags["evaluate"])
    else:
        results = main_linearprobe.run(config, devices[0], flags["evaluate"])
    if results is not None:
        print(results_markdown(results), end="")
        print(
            f"\nWritten to {config.output_dir / 'eval' if flags['evaluate'] else config.output_dir}"
        )


if __name__ == "__main__":
    run_main(main)
