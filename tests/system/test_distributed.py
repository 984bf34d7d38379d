"""Ranks: alone everything is the identity; together, numbers are summed exactly and gradients averaged once a step."""

import json
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from groundling.system import distributed

CPU = torch.device("cpu")


def test_one_process_is_one_rank():
    model = nn.Linear(1, 1)
    with distributed.process_group(CPU):
        assert (distributed.rank(), distributed.world_size(), distributed.is_first()) == (0, 1, True)
        assert not td.is_initialized()
        assert distributed.wrap(model) is model
        assert distributed.all_reduce_sum(2.5) == 2.5
        assert distributed.any_rank(True) is True
        assert distributed.any_rank(False) is False
        tensor = torch.arange(3)
        assert distributed.gather_tensors(tensor)[0] is tensor
        distributed.barrier()
        with distributed.sync_gradients(model, when=False):
            model(torch.ones(1, 1)).backward()
    assert model.weight.grad is not None


LARGE = 2**52 + 1
"""Not a float32 number: a count summed in float32 would be another."""


def one_of_two(rank: int, folder: Path) -> None:
    import os

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    os.environ["MASTER_PORT"] = (folder / "port").read_text("utf-8")
    torch.set_num_threads(1)
    with (
        distributed.process_group(CPU, timeout_s=60),
        distributed.process_group(CPU),
    ):  # the inner one finds that we have joined
        model = nn.Linear(1, 1, bias=False)
        nn.init.ones_(model.weight)
        wrapped = distributed.wrap(model)
        gradients = []
        for last in (False, True):
            with distributed.sync_gradients(wrapped, when=last):
                wrapped(torch.full((1, 1), 1.0 + rank)).backward()
            gradients.append(model.weight.grad.item())
        answers = {
            "who": [distributed.rank(), distributed.world_size(), distributed.is_first()],
            "sum": distributed.all_reduce_sum(LARGE if rank else 2),
            "any": [distributed.any_rank(rank == 1), distributed.any_rank(False)],
            "gathered": [tensor.tolist() for tensor in distributed.gather_tensors(torch.tensor([rank, 7]))],
            "wrapped": isinstance(wrapped, DistributedDataParallel),
            "gradients": gradients,
        }
        distributed.barrier()
        if rank == 0:
            time.sleep(1)
            (folder / "saved").touch()
    answers["left"] = not td.is_initialized()
    answers["left_after_the_first_rank_saved"] = (folder / "saved").exists()
    (folder / f"{rank}.json").write_text(json.dumps(answers), "utf-8")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_processes_are_two_ranks(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]), "utf-8")
    mp.spawn(one_of_two, (tmp_path,), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text("utf-8")) for rank in (0, 1))
    assert first.pop("who") == [0, 2, True]
    assert second.pop("who") == [1, 2, False]
    # Held back, a rank's gradient is its own: 1 and 2. Then the mean of both ranks' sums, 2 and 4.
    assert (first.pop("gradients"), second.pop("gradients")) == ([1, 3], [2, 3])
    assert first.pop("left_after_the_first_rank_saved")
    assert second.pop("left_after_the_first_rank_saved"), "the second rank left while the first was saving"
    expected = {"sum": LARGE + 2, "any": [True, False], "gathered": [[0, 7], [1, 7]], "wrapped": True, "left": True}
    assert first == second == expected
