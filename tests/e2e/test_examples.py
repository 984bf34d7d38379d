"""Each example is short, and runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from groundling.data import datasets

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


def test_there_are_examples_and_each_is_short():
    assert len(EXAMPLES) >= 2
    assert all(len(path.read_text("utf-8").splitlines()) <= 40 for path in EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"), [("your_own_text", "validation loss"), ("see_attention", "how much it takes")]
)
def test_example_runs(name, says, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text(datasets.get("tiny_shakespeare").read_text("utf-8")[:50_000], "utf-8")
    argv = [str(text)] if name == "your_own_text" else []
    path = next(path for path in EXAMPLES if path.stem == name)
    done = subprocess.run([sys.executable, path, *argv], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES} == {"your_own_text", "see_attention"}
