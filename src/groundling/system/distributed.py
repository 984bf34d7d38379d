"""Distributed training: ranks, reductions, DDP. Without torchrun, the process is rank 0 of 1."""

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
    """Rank of this process."""
    return td.get_rank() if td.is_initialized() else 0


def world_size() -> int:
    """Number of ranks."""
    return td.get_world_size() if td.is_initialized() else 1


def is_first() -> bool:
    """Whether this is rank 0, the one that writes files and prints."""
    return rank() == 0


@contextmanager
def process_group(device: torch.device, timeout_s: float = 600.0, advice: str = "start again") -> Iterator[None]:
    """Initialize the process group of torchrun: gloo on CPUs, NCCL on GPUs. Without torchrun, do nothing.

    Exiting is a barrier: torchrun kills the other ranks when one exits with an error, and rank 0 may still be saving.

    Args:
        device: of this rank.
        timeout_s: of each collective operation.
        advice: what the user should do if a rank is lost; part of the error message.

    Raises:
        TrainingError: another rank exited or timed out.
    """
    if "RANK" not in os.environ or td.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # gloo for counts and flags, which are reduced on the CPU.
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
    """Prefix the store's keys with the restart count of torchrun.

    torchrun keeps its store over restarts, and gloo would connect to the addresses of dead ranks
    (pytorch/pytorch#135712). Each machine counts its own restarts, so this works for one machine only.
    """
    if os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"):
        return store
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return td.PrefixStore(f"attempt-{attempt}", store)  # type: ignore[attr-defined]


def _is_lost_rank(error: RuntimeError) -> bool:
    """Whether a peer is gone. gloo, unlike NCCL and the store, raises a plain RuntimeError."""
    return isinstance(error, td.DistError) or "/gloo/" in str(error)


def wrap(model: nn.Module) -> nn.Module:
    """Wrap a model in DDP if there is more than one rank."""
    if world_size() == 1:
        return model
    device = next(model.parameters()).device
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


@contextmanager
def sync_gradients(model: nn.Module, *, when: bool) -> Iterator[None]:
    """Average gradients over the ranks only if `when`: in the last micro-batch of a step."""
    hold = model.no_sync() if isinstance(model, DistributedDataParallel) and not when else nullcontext()
    with hold:
        yield


def all_reduce_sum(value: float, device: torch.device | str = "cpu") -> float:
    """Sum a number over all ranks in float64 (float32 on mps)."""
    if world_size() == 1:
        return value
    dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
    total = torch.tensor([value], dtype=dtype, device=device)
    td.all_reduce(total)
    return float(total.item())


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether `flag` is set on at least one rank; the same on all ranks."""
    return all_reduce_sum(float(flag), device) > 0


def gather_tensors(tensor: Tensor) -> list[Tensor]:
    """Gather tensors of one shape from all ranks, in rank order."""
    if world_size() == 1:
        return [tensor]
    gathered = [torch.empty_like(tensor) for _ in range(world_size())]
    td.all_gather(gathered, tensor)
    return gathered


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Run the block on the first rank, then on the others, which find the files it wrote."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        td.barrier()
