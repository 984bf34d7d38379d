"""Row 19: a rank is killed; torchrun starts all ranks again, and the run ends as if nothing had happened."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DIES_ONCE = Path(__file__).with_name("dies_once.py")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Where the run is that nobody broke: two ranks, with dropout; made by the first test that asks."""
    return tmp_path_factory.mktemp("unbroken") / "run"


def torchrun(tiny, config, *flags, dies_rank="", dies_at=0, max_restarts=1):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(max_restarts), str(DIES_ONCE), *tiny.command(config)[3:], *flags]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environment |= {"DIES_RANK": dies_rank, "DIES_AT": str(dies_at)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dies_rank", "dies_at"), [("1", 7), ("0", 2)], ids=["after a checkpoint", "before the first one"]
)
def test_a_killed_rank_costs_nothing_but_time(tiny, tmp_path, unbroken, dies_rank, dies_at, last_bytes):
    if not unbroken.exists():
        done = torchrun(tiny, tiny.config(unbroken, steps=12))
        assert done.returncode == 0, done.stderr
    done = torchrun(
        tiny, tiny.config(tmp_path / "run", steps=12), "--resume", "if-present", dies_rank=dies_rank, dies_at=dies_at
    )
    assert done.returncode == 0, done.stderr
    assert last_bytes(tmp_path / "run") == last_bytes(unbroken)
    assert ("resuming from" in done.stderr) == (dies_at > 5)
    survivor = "1" if dies_rank == "0" else "0"
    (said,) = [line for line in done.stderr.splitlines() if "error" in line and "groundling" in line]
    assert said.startswith(f"groundling: error: rank {survivor} lost the connection to another rank")
    assert "--resume if-present" in said
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_refusal_of_the_first_rank_is_a_line_and_no_traceback_of_the_others(tiny, a_copy, snapshot):
    """What torchrun itself has to say to it comes below."""
    before = snapshot(a_copy)
    done = torchrun(tiny, tiny.config(a_copy), max_restarts=0)
    assert done.returncode != 0
    ours = done.stderr.partition("torch/distributed/elastic")[0]
    assert "already holds a run; resume it (--resume)" in ours
    assert "Traceback" not in ours
    assert snapshot(a_copy) == before
