"""How much memory a training step takes, estimated before the first one, and how much there is."""

import logging
import os
from dataclasses import dataclass

import torch
from torch import nn

GIB, MIB = 2**30, 2**20
FLOAT32 = 4  # bytes
# Bytes that a pre-norm block with MLP ratio 4 keeps for the backward pass, per token and unit of
# width: block input, normalised input, query, key and value, attention output, its projection's
# input, the same two of the MLP, and the hidden layer before and after GELU: 16 numbers. Under
# autocast they are bfloat16, but for the residual stream.
KEPT_FLOAT32, KEPT_BFLOAT16 = 64, 36
# Numbers per token and unit of width that are alive at once in a block without gradients: residual
# stream, its normalised copy, and the hidden layer before and after GELU.
PASSING = 10

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Blocks:
    """A stack of transformer blocks and what a micro-step puts through it.

    Attributes:
        clips: of a micro-batch.
        tokens: of a clip.
        width, depth, heads: of the stack.
        fused: whether attention is computed without its N x N matrix.
        bfloat16: whether autocast is on.
        recompute: whether activations are recomputed in the backward pass.
        extra: numbers that a bias and value maps of ROIs keep per token and block.
    """

    clips: int
    tokens: int
    width: int
    depth: int
    heads: int
    fused: bool = True
    bfloat16: bool = False
    recompute: bool = False
    extra: int = 0

    @classmethod
    def from_modules(
        cls,
        blocks: nn.ModuleList,
        clips: int,
        tokens: int,
        *,
        bias: nn.Module | None = None,
        bfloat16: bool,
        recompute: bool,
    ) -> "Blocks":
        """Read width, depth, heads and kind of attention off ``blocks`` and their ``bias``."""
        attention, extra = blocks[0].attn, 0
        width = attention.qkv.in_features
        if bias is not None:  # of query, key, value and output of each head
            extra = 4 * attention.num_heads * bias.width(torch.bfloat16 if bfloat16 else None)
        if hasattr(attention, "roi_values"):
            extra += 3 * attention.roi_values.of_roi.shape[1]
            extra += width if bfloat16 else 0  # autocast casts their input once more
        if extra:  # what attention keeps is no view of the projection's output, or of its own
            extra += width
        return cls(
            clips,
            tokens,
            width=width,
            depth=len(blocks),
            heads=attention.num_heads,
            fused=attention.fused_attn,
            bfloat16=bfloat16,
            recompute=recompute,
            extra=extra,
        )

    def activations(self) -> int:
        """Bytes kept for the backward pass.

        ``clips x tokens x width x depth`` times 64 (float32) or 36 (bfloat16),
        ``clips x tokens x extra x depth`` times 4 or 2, and unless attention is fused
        ``clips x heads x tokens^2 x depth`` times the same. Recomputing keeps the input of each
        block, and all of one block at a time.
        """
        numbers = self.clips * self.tokens * self.width
        bytes_each = FLOAT32 // 2 if self.bfloat16 else FLOAT32
        block = numbers * (KEPT_BFLOAT16 if self.bfloat16 else KEPT_FLOAT32)
        block += self.clips * self.tokens * self.extra * bytes_each
        if not self.fused:
            block += self.clips * self.heads * self.tokens**2 * bytes_each
        if self.recompute:
            return self.depth * numbers * FLOAT32 + block
        return self.depth * block

    def passing(self) -> int:
        """Bytes at most of a forward pass without gradients."""
        matrix = 0 if self.fused else 2 * self.clips * self.heads * self.tokens**2
        return (self.clips * self.tokens * self.width * PASSING + matrix) * FLOAT32


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process on its device.

    Attributes:
        state: weights, gradients and the two moments of AdamW, and weights that are only averaged.
        activations: of a micro-step.
        copy: of weights and moments, which a checkpoint is written from; on the host.
    """

    state: int
    activations: int
    copy: int

    @classmethod
    def from_modules(
        cls, trained: list[nn.Module], averaged: list[nn.Module], activations: int
    ) -> "MemoryEstimate":
        """Estimate for ``trained`` networks (16 bytes per parameter) and ``averaged`` ones (4).

        Frozen parameters of the trained ones count as the averaged do.
        """
        learning = _parameters(trained, frozen=False)
        still = _parameters(trained, frozen=True) + _parameters(averaged)
        return cls(
            state=FLOAT32 * (4 * learning + still),
            activations=activations,
            copy=FLOAT32 * (3 * learning + still),
        )

    def report(self, device: torch.device, processes: int, advice: str) -> None:
        """Log the memory that a step takes; warn if it does not fit.

        Args:
            processes: of this machine, which share a host's memory.
            advice: what makes a step smaller.
        """
        needed = self.state + self.activations
        if device.type != "cuda":  # the copy is beside the networks
            needed += self.copy
        there = available_bytes(device, processes)
        logger.info(
            "a step takes about %s%s: %s for weights, gradients and optimizer, %s for "
            "activations; a checkpoint on its way to the disk takes %s of the host",
            amount(needed),
            "" if there is None else f" of {amount(there)}",
            *map(amount, (self.state, self.activations, self.copy)),
        )
        if there is not None and needed > there:
            logger.warning(
                "%s has %s for this process: a step may not fit. %s", device, amount(there), advice
            )


def available_bytes(device: torch.device, processes: int = 1) -> int | None:
    """Memory that this process may use on ``device``; ``None`` where the system does not say.

    On CUDA what is free now and what this process holds already, else an equal share of the host.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if not hasattr(os, "sysconf"):  # Windows
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // processes


def amount(number: int) -> str:
    """``number`` bytes in GiB, or below one in MiB, of which there is one at least."""
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{max(number / MIB, 1):.0f} MiB"


def _parameters(modules: list[nn.Module], frozen: bool | None = None) -> int:
    """Number of parameters; with ``frozen`` of those that are, or are not, frozen."""
    return sum(
        p.numel()
        for module in modules
        for p in module.parameters()
        if frozen is None or p.requires_grad is not frozen
    )
