"""What the release's downstream YAML and command line mean in the keys of this project.

``configs/downstream/fine_tune.yaml`` and a user's own copy of the release's file hold, say,
``weight_decay: 0.05`` at the top level, where a task file has ``fine_tune: {weight_decay: 0.05}``.
"""

import logging
from collections.abc import Mapping
from typing import Any

from src.utils.errors import UserError
from src.utils.yaml_config import merge, nested

logger = logging.getLogger(__name__)

# Names of the release, and ours.
PROTOCOL_ALIASES = {"linprobe": "linear_probe"}
_PLACES = {"seed": "evaluation.seed", "num_workers": "data.num_workers"}
# Settings of the optimizer. The file describes fine-tuning, so they go to that section; the release
# runs its probe from the same file, but weight decay 0 is what was published (method 8.14).
_FINE_TUNE = {
    "accum_iter": "accumulation_steps",
    "lr": "lr",
    "drop_path": "drop_path",
    "clip_grad": "clip_grad",
    "weight_decay": "weight_decay",
    "layer_decay": "layer_decay",
    "warmup_epochs": "warmup_epochs",
}
_EVERY_PROTOCOL = ("lr", "warmup_epochs")
# What only one value of can be had, and what to do about another.
_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "global_pool": ((True,), "a Brain-JEPA encoder has no class token: tokens are averaged"),
    "cls_token": ((False,), "a Brain-JEPA encoder has no class token: tokens are averaged"),
    "finetune": (("", None), "name the checkpoint by --load_path"),
    "resume": (
        ("", None),
        "--resume goes on with what is in --output_root; a fine-tuned file is scored by --eval "
        "--load_path FILE",
    ),
    "start_epoch": ((0,), "a stored state knows its epoch; go on with it by --resume"),
}
_WITHOUT_EFFECT = {
    "device": "--devices names them",
    "pin_mem": "memory is pinned for CUDA",
    "no_pin_mem": "memory is pinned for CUDA",
    "world_size": "--devices or torchrun",
    "local_rank": "--devices or torchrun",
}
# Switches of the release's command line: the key each sets, that key when the switch is absent, and
# what it is here where neither flags nor files say.
_SWITCHES: dict[str, tuple[str, Any, Any]] = {
    "use_normalization": ("normalization", "none", "checkpoint"),
    "downsample": ("downsample", False, "as in pretraining"),
    "label_normalization": ("label_normalization", False, True),
}
FLAT_KEYS = (*_PLACES, *_FINE_TUNE, *_FIXED, *_WITHOUT_EFFECT)


def sections_from_flat(
    values: Mapping[str, Any], protocol: str, defaults: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], list[str]]:
    """The same values without flat keys of the release, and what of these has no effect.

    Args:
        values: content of a YAML file; its own sections win over its flat keys.
        defaults: of the section of ``protocol``.

    Raises:
        UserError: on a value that cannot be honoured.
    """
    flat = {key: value for key, value in values.items() if key in FLAT_KEYS}
    sections: dict[str, Any] = {}
    idle = []
    for key, value in flat.items():
        if key in _FIXED:
            allowed, why = _FIXED[key]
            if value not in allowed:
                raise UserError(f"{where}: {key} is {value!r}; allowed: {allowed[0]!r} ({why}).")
        elif key in _WITHOUT_EFFECT:
            idle.append(f"{key} ({_WITHOUT_EFFECT[key]})")
        elif key in _PLACES:
            sections = merge(sections, nested(_PLACES[key], value))
        else:
            sections = merge(sections, nested(f"fine_tune.{_FINE_TUNE[key]}", value))
            if protocol == "fine_tune":
                continue
            if key not in _EVERY_PROTOCOL or key not in defaults:
                idle.append(f"{key} (of fine_tune)")
            elif value is not None:
                value = [value] if isinstance(defaults[key], tuple) else value  # a grid of one
                sections = merge(sections, nested(f"{protocol}.{key}", value))
            if key == "accum_iter" and value != 1 and "batch_size" in defaults:
                raise UserError(
                    f"{where}: accum_iter is {value!r}; {protocol} takes whole batches: leave it "
                    "at 1 and give --batch_size."
                )
    return merge(sections, {k: v for k, v in values.items() if k not in flat}), idle


def absent_switches(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides by which the switches that a command line of the release lacks are off.

    Args:
        values: what the task files say. Keys other than those of the switches are left alone: a
            stride or a TR that they ask for stays.
        given: overrides that flags and ``section.key=value`` make.
    """
    data = values.get("data")
    data = dict(data) if isinstance(data, Mapping) else {}
    data |= {key[5:]: value for key, value in given.items() if key.startswith("data.")}
    overrides: dict[str, Any] = {}
    replaced = []
    for switch, (key, off, silent) in _SWITCHES.items():
        if f"data.{key}" in given:
            continue
        otherwise = key == "downsample" and (data.get("stride") or data.get("target_tr"))
        overrides[f"data.{key}"] = None if otherwise else off
        idle = key == "label_normalization" and data.get("type") != "regression"
        here = data.get(key, silent)
        if here != off and not (otherwise or idle):
            replaced.append(f"--{switch} (data.{key} would be {str(here).lower()})")
    if replaced:
        logger.warning(
            "off, for a switch that is absent beside --data_make_fn is off, as in the release: %s. "
            "--config TASK in place of --data_make_fn has the task file's own values.",
            ", ".join(replaced),
        )
    return overrides
