"""From a text of one's own to a model that speaks, as a user does it: by the command, then in Python."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from groundling import generate, load_bundle, stream
from groundling.sample.sampler import SamplingConfig
from groundling.system.metrics import read_records

pytestmark = pytest.mark.slow
SMALL = """
    --steps 60 --batch-size 8 --eval-every 20 --save-every 20 --sample-every 30 --log-every 5 --order random
    --model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.block-size 16 --optim.kind muon --optim.lr 1e-2
    --schedule.warmup-steps 2 --runtime.compile off --runtime.device cpu --runtime.dtype float32
""".split()  # noqa: SIM905


def groundling(*words: str | Path, cwd: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [Path(sys.executable).with_name("groundling"), *words],
        cwd=cwd,
        env=os.environ | {"GROUNDLING_CACHE": str(cwd / "cache")},
        input="" if stdin is None else stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory, story):
    """A folder in which a run has been trained on a text that lies in it."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "my.txt").write_text(story.read_text("utf-8"), encoding="utf-8")
    done = groundling("pretrain", "--data.path", "my.txt", "--out-dir", "run", *SMALL, cwd=folder)
    (folder / "said").write_text(done.stderr, encoding="utf-8")
    assert done.stdout == ""
    return folder


def test_what_a_run_leaves(home):
    left = {path.name for path in (home / "run").iterdir() if not path.name.startswith(".")}
    assert left == {"run.toml", "env.json", "metrics.jsonl", "summary.json", "checkpoints", "bundle"}
    summary = json.loads((home / "run" / "summary.json").read_text("utf-8"))
    assert {"steps", "tokens", "train_s", "wall_s", "val_loss", "best_val_loss"} <= summary.keys()
    assert (summary["steps"], summary["tokens"]) == (60, 60 * 8 * 16)
    assert 0 < summary["train_s"] < summary["wall_s"]
    losses = {r["step"]: r["val_loss"] for r in read_records(home / "run" / "metrics.jsonl") if "val_loss" in r}
    assert list(losses) == [20, 40, 60]
    assert summary["val_loss"] == losses[60]
    assert summary["best_val_loss"] == min(losses.values()) < 2.3, "nothing was learned"


def test_what_is_said_on_the_way(home):
    said = (home / "said").read_text("utf-8")
    for word in (
        "parameters  ",
        "tokens      ",
        "work        ",
        "time        about ",
        "precision: float32",
        "device: cpu",
    ):
        assert word in said
    assert "step 60: validation loss" in said
    assert said.rstrip().endswith("sample from it: groundling sample run")


def test_it_speaks(home):
    words = ("sample", "run", "--prompt", "the king", "--max-new-tokens", "20", "--seed", "3")
    said = groundling(*words, cwd=home)
    assert said.stdout.startswith("the king")
    assert len(said.stdout) == len("the king") + 20 + 1
    assert said.stderr == ""
    assert groundling(*words, cwd=home).stdout == said.stdout
    assert groundling(*words[:-1], "4", cwd=home).stdout != said.stdout


def test_the_prompt_may_come_through_a_pipe(home):
    said = groundling("sample", "run/bundle", "--max-new-tokens", "5", cwd=home, stdin="and fool")
    assert said.stdout.startswith("and fool")
    assert len(said.stdout) == len("and fool") + 5 + 1


def test_three_lines_of_python_say_what_the_command_says(home):
    bundle = load_bundle(home / "run")
    how = SamplingConfig(max_new_tokens=20, seed=3)
    said = generate(bundle, "the king", how)
    assert "".join(stream(bundle, "the king", how)) == said
    words = ("sample", "run", "--prompt", "the king", "--max-new-tokens", "20", "--seed", "3")
    assert groundling(*words, cwd=home).stdout == f"the king{said}\n"


def test_its_curves_are_drawn_and_its_files_are_good(home):
    assert groundling("plot", "run", "--out", "losses.png", cwd=home).stdout == "wrote losses.png\n"
    assert (home / "losses.png").read_bytes().startswith(b"\x89PNG")
    lines = groundling("verify-checkpoint", "run", cwd=home).stdout.splitlines()
    assert len(lines) == len(list((home / "run" / "checkpoints").glob("step-*"))) + 1
    assert all(line.startswith("good  run/") for line in lines)


def test_its_own_run_toml_repeats_it(home):
    groundling("pretrain", "run/run.toml", "--out-dir", "again", cwd=home)
    first, again = (
        [(r["step"], r.get("loss"), r.get("val_loss")) for r in read_records(home / run / "metrics.jsonl")]
        for run in ("run", "again")
    )
    assert first == again
