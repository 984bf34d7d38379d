"""Gives a test what it needs to follow advice, and sees to it that it did."""

import shutil
import sys
from pathlib import Path

import pytest
from advicekit import Advised

sys.path += [str(Path(__file__).parents[1] / name) for name in ("serve", "faults")]


@pytest.fixture
def advised(request, capfd, monkeypatch):
    """The program, and a record of what it said."""
    monkeypatch.setenv("COLUMNS", "300")
    followed = Advised(capfd)
    yield followed
    if not getattr(request.node, "rep_failed", False):
        followed.check(getattr(request.node, "advice", None) or getattr(request.function, "follows", []))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A test that failed for itself need not fail again for what it did not reach."""
    report = yield
    if report.when == "call" and report.failed:
        item.rep_failed = True
    return report


@pytest.fixture
def a_run(finished_run, tmp_path):
    """A finished run, to be spoilt."""
    return shutil.copytree(finished_run, tmp_path / "run")
