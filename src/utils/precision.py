"""Mixed precision: bfloat16 autocast where the device has it, no gradient scaler (method 8.11)."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

logger = logging.getLogger(__name__)


def has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 in hardware; emulation is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Where an older PyTorch cannot be asked, float32 is computed.
        ask = getattr(torch.cpu, "get_capabilities", dict)
        return any(ask().get(unit, False) for unit in ("avx512_bf16", "amx_bf16"))
    return device.type == "mps"


def autocast(device: torch.device, use_bfloat16: bool) -> Callable[[], AbstractContextManager]:
    """A factory of autocast contexts; of empty ones if bfloat16 is not asked for or not there."""
    if not use_bfloat16:
        return nullcontext
    if not has_bfloat16(device):
        logger.info("%s has no bfloat16 units: computing in float32 instead", device)
        return nullcontext
    return partial(torch.autocast, device.type, dtype=torch.bfloat16)
