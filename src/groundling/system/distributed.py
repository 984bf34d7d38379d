"""Ranks: who we are, how to add numbers up, and how a model is wrapped. One process without torchrun is one rank."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from groundling.errors import TrainingError


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
def process_group(device: torch.device, timeout_s: float = 600.0, advice: str = "start again") -> Iterator[None]:
    """Join the processes that torchrun started: gloo on CPUs, NCCL on GPUs. Without torchrun, do nothing.

    The ranks leave together: torchrun ends the others as soon as one has gone with an exit code, and the first rank
    may still be saving.

    Args:
        device: where this rank computes.
        timeout_s: how long a rank waits for the others.
        advice: what to do when another rank has gone.

    Raises:
        TrainingError: another rank has gone, or did not answer in time.
    """
    if "RANK" not in os.environ or td.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Counts and flags are added up on the CPU, also where tensors are on GPUs.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_s)
    store, me, size = next(td.rendezvous("env://", timeout=timeout))  # type: ignore[attr-defined]
    td.init_process_group(backend, store=_of_this_attempt(store), rank=me, world_size=size, timeout=timeout)
    try:
        yield
        td.barrier()
    except RuntimeError as error:
        if not _is_lost_rank(error):
            raise
        how = re.search(r"Connection \w+ by peer|[Tt]imed? ?out", str(error))
        raise TrainingError(
            f"rank {me} lost the connection to another rank ({how[0] if how else type(error).__name__}), whose own "
            f"message tells why; {advice}"
        ) from error
    finally:
        td.destroy_process_group()


def _of_this_attempt(store: Any) -> Any:
    """Keep the addresses of ranks that torchrun has restarted apart from those of the attempt before: it keeps its
    store, and gloo would call the dead (pytorch/pytorch#135712). Machines count restarts each for itself: only of
    one machine is it known that all ranks have the same number.
    """
    if os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"):
        return store
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return td.PrefixStore(f"attempt-{attempt}", store)  # type: ignore[attr-defined]


def _is_lost_rank(error: RuntimeError) -> bool:
    """gloo has no error class of its own for a peer that is gone; NCCL and the store have."""
    return isinstance(error, td.DistError) or "/gloo/" in str(error)


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


@contextmanager
def first_rank_first() -> Iterator[None]:
    """The first rank runs the block, then the others do: what it wrote to disk, they find."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        td.barrier()
