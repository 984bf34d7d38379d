"""What all tests share: one thread (the tests themselves run side by side), and no colours in what is read back."""

import os

import pytest
import torch

# Two busy threads on a shared core wait for each other; subprocesses inherit this.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["NO_COLOR"] = "1"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _forget_determinism():
    """A run switches deterministic algorithms on for its process; the next test starts without."""
    yield
    torch.use_deterministic_algorithms(False)
