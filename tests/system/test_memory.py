"""How much memory there is, as the system tells it."""

import resource
import sys
from pathlib import Path

import pytest

from groundling.system.memory import Memory, _control_groups, memory_of


def test_the_main_memory_is_known_here():
    found = memory_of()
    assert found is not None
    assert 0 < found.free <= found.total


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n", encoding="ascii")


def groups(tmp_path: Path, lines: str) -> list[Memory]:
    own = tmp_path / "cgroup"
    own.write_text(lines, encoding="ascii")
    return list(_control_groups(tmp_path / "fs", own))


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_control_groups_count_and_pages_of_files_do_not(tmp_path, version):
    """A group without a limit in one with a limit."""
    mount = tmp_path / "fs" / "memory" if version == 1 else tmp_path / "fs"
    names = {
        1: ("memory__limit_in_bytes", "memory__usage_in_bytes", 2**63 - 4096),
        2: ("memory__max", "memory__current", "max"),
    }
    limit, used, none = names[version]
    line = "total_inactive_file" if version == 1 else "inactive_file"
    write(mount / "a", **{limit: 1000, used: 700, "memory__stat": f"anon 5\n{line} 200"})
    write(mount / "a" / "b", **{limit: none, used: 90, "memory__stat": "anon 5"})
    lines = "12:cpu,memory:/a/b\n0::/\n" if version == 1 else "0::/a/b\n"
    assert groups(tmp_path, lines) == [Memory(1000, 500)]


def test_a_container_that_sees_its_own_group_as_the_root(tmp_path):
    write(tmp_path / "fs", memory__max=1000, memory__current=1200, memory__stat="inactive_file 0")
    assert groups(tmp_path, "0::/../outside/of/here\n") == [Memory(1000, 0)]


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert list(_control_groups(tmp_path, tmp_path / "nothing")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells what is used of it")
def test_the_limit_of_a_process_counts():
    """`ulimit -v`."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    limit = used + 100_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        found = memory_of()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert found is not None
    assert found.total == min(limit, memory_of().total)
    assert found.free <= 100_000_000
