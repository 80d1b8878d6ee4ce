"""Gradients averaged over processes, for pretraining and for fine-tuning."""

import inspect
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .distributed import Ranks


def data_parallel(module: nn.Module, ranks: Ranks, accumulation_steps: int = 1) -> nn.Module:
    """Return ``module``, or, with several processes, a wrapper of it that averages gradients.

    The wrapped module stays the same object and keeps its parameters' names. Its buffers are equal
    in every process and are not sent.
    """
    if ranks.world_size == 1:
        return module
    # PyTorch renamed this option; the old name warns where the new one exists.
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(
        module,
        device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        # A static graph has to be seen whole in the first backward pass; one that exchanges
        # nothing (accumulation) is an internal error of PyTorch.
        static_graph=accumulation_steps == 1,
        **{buffers: False},
    )


def no_sync(module: nn.Module) -> AbstractContextManager:
    """Context of a micro-step whose gradients are exchanged later (method 8.11)."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def clear_gradients(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Forget the gradients; those of several processes stay views of the buckets they travel in.

    Set to ``None``, they would be allocated anew beside the buckets by the next accumulation.
    """
    optimizer.zero_grad(set_to_none=not isinstance(module, DistributedDataParallel))
