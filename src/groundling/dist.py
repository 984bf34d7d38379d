"""Ranks: who we are, how to add numbers up, and how a model is wrapped. One process without torchrun is one rank."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    """This process's number, from 0."""
    return td.get_rank() if td.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return td.get_world_size() if td.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the rank that writes files and talks to people."""
    return rank() == 0


@contextmanager
def process_group(device: torch.device, timeout_s: float = 600.0) -> Iterator[None]:
    """Join the processes that torchrun started: gloo on CPUs, NCCL on GPUs. Without torchrun, do nothing.

    The ranks leave together: torchrun ends the others as soon as one has gone with an exit code, and the first rank
    may still be saving.
    """
    if "RANK" not in os.environ or td.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Counts and flags are added up on the CPU, also where tensors are on GPUs.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    td.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        yield
        td.barrier()
    finally:
        td.destroy_process_group()


def wrap(model: nn.Module) -> nn.Module:
    """Make a model average its gradients over the ranks (DDP); alone, it stays as it is."""
    if world_size() == 1:
        return model
    device = next(model.parameters()).device
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


@contextmanager
def sync_gradients(model: nn.Module, *, when: bool) -> Iterator[None]:
    """Average gradients over the ranks only in the last backward pass of a step: once and not per micro-batch."""
    hold = model.no_sync() if isinstance(model, DistributedDataParallel) and not when else nullcontext()
    with hold:
        yield


def all_reduce_sum(value: float, device: torch.device | str = "cpu") -> float:
    """The sum of a number over all ranks, in float64 (exact for counts up to 2**53)."""
    if world_size() == 1:
        return value
    dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
    total = torch.tensor([value], dtype=dtype, device=device)
    td.all_reduce(total)
    return float(total.item())


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether `flag` holds on at least one rank; all ranks get the same answer."""
    return all_reduce_sum(float(flag), device) > 0


def gather_tensors(tensor: Tensor) -> list[Tensor]:
    """Every rank's tensor, in the order of ranks, on every rank; all have one shape."""
    if world_size() == 1:
        return [tensor]
    gathered = [torch.empty_like(tensor) for _ in range(world_size())]
    td.all_gather(gathered, tensor)
    return gathered


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        td.barrier()
