"""Row 12: a folder that holds a run is refused, and left as it was, until somebody says what is meant."""

import shutil
import sys

import pytest

from groundling.cli import main
from groundling.errors import CheckpointError, ConfigError, GroundlingError
from groundling.train.checkpoints.checkpoint import Checkpoints, read_state
from groundling.train.run_folder import FILES, FOLDERS


@pytest.fixture
def text(finished_run):
    return {"path": str(finished_run.parent / "text.txt")}


def test_a_second_run_is_refused_and_changes_nothing(tiny, a_copy, text, snapshot, capsys):
    before = snapshot(a_copy)
    verb, *rest = tiny.command(tiny.config(a_copy, steps=5, data=text))[3:]
    assert main([verb, *rest]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{a_copy} already holds a run" in said
    for way_out in ("--resume", "--overwrite", "--out-dir"):
        assert way_out in said
    assert snapshot(a_copy) == before


@pytest.mark.parametrize("left", [*FILES, *FOLDERS])
def test_whatever_is_left_of_a_run_counts(tiny, tmp_path, left, snapshot):
    run = tmp_path / "run"
    run.mkdir()
    (run / left).mkdir() if left in FOLDERS else (run / left).write_text("mine", encoding="utf-8")
    before = snapshot(run)
    with pytest.raises(ConfigError, match="already holds a run"):
        tiny.pretrain(run)
    assert snapshot(run) == before


def test_a_folder_with_other_things_is_used_and_they_stay(tiny, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine", encoding="utf-8")
    tiny.pretrain(run, steps=2)
    tiny.pretrain(run, steps=2, overwrite=True)
    assert (run / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_overwriting_leaves_nothing_of_the_old_run(tiny, a_copy, text):
    """Not its later checkpoints, which would else be the newest; not what a crash had left of it."""
    old = read_state(Checkpoints(a_copy / "checkpoints").finished()[-1])["run_id"]
    (a_copy / ".tmp-removed-checkpoints-0123").mkdir()
    tiny.pretrain(a_copy, overwrite=True, steps=3, data=text)
    (only,) = Checkpoints(a_copy / "checkpoints").finished()
    assert only.name == "step-00000003"
    assert read_state(only)["run_id"] != old
    assert not list(a_copy.rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 4, "micro_batch_size": 3}, "micro_batch_size 3 does not divide"),
        ({"batch_size": 10_000_000}, "at once need about .* GB of memory .* --micro-batch-size"),
        ({"sample_every": 2, "sample_prompt": "\N{SNOWMAN}"}, "\N{SNOWMAN}"),
        ({"sinks": ("wandb",)}, "the package 'wandb' is not installed"),
    ],
    ids=["micro-batches", "memory", "prompt", "sink"],
)
def test_invalid_settings_are_refused_before_the_old_run_is_removed(
    settings, said, tiny, a_copy, text, snapshot, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    before = snapshot(a_copy)
    with pytest.raises(GroundlingError, match=said):
        tiny.pretrain(a_copy, overwrite=True, data=text, **settings)
    assert snapshot(a_copy) == before


def test_a_run_does_not_share_a_folder_with_a_speedrun(tiny, a_copy, text, snapshot):
    (a_copy / "speedrun.json").write_text("[]", encoding="utf-8")
    before = snapshot(a_copy)
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="holds a speedrun"):
            tiny.pretrain(a_copy, overwrite=overwrite, data=text)
    assert snapshot(a_copy) == before


def test_another_runs_checkpoints_are_never_removed(tiny, a_copy, finished_run, tmp_path, text):
    """Somebody has copied them in. Ours are pruned as ever, theirs stay."""
    tiny.pretrain(tmp_path / "other", steps=2, data=text)
    theirs = a_copy / "checkpoints" / "step-00000002"
    shutil.copytree(tmp_path / "other" / "checkpoints" / "step-00000002", theirs)
    tiny.pretrain(a_copy, resume=True, steps=20, keep_checkpoints=1, data=text)
    assert theirs.is_dir()
    assert len(Checkpoints(a_copy / "checkpoints").finished()) <= 3
    ids = {read_state(path)["run_id"] for path in Checkpoints(a_copy / "checkpoints").finished()}
    assert len(ids) == 2


def test_resume_if_present_starts_or_resumes(tiny, tmp_path, last_bytes, capsys):
    tiny.pretrain(tmp_path / "unbroken", steps=12)
    first = tiny.pretrain(tmp_path / "run", steps=7, resume="if-present")
    second = tiny.pretrain(tmp_path / "run", steps=12, resume="if-present")
    assert (first.figures["steps"], second.figures["steps"]) == (7, 12)
    assert capsys.readouterr().err.count("resuming from") == 1
    assert last_bytes(tmp_path / "run") == last_bytes(tmp_path / "unbroken")


def test_resume_if_present_restarts_a_run_without_checkpoints(tiny, a_copy, text):
    """What a process leaves that is killed in its first steps: settings, a record, half a checkpoint."""
    for name in ("summary.json", "checkpoints", "bundle"):
        path = a_copy / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (a_copy / "checkpoints" / ".tmp-step-5").mkdir(parents=True)
    assert (a_copy / "metrics.jsonl").is_file()
    assert tiny.pretrain(a_copy, steps=3, data=text, resume="if-present").figures["steps"] == 3
    assert [path.name for path in sorted((a_copy / "checkpoints").glob("[.s]*"))] == ["step-00000003"]


@pytest.mark.parametrize("left", ["a damaged checkpoint", "one without its manifest", "a model without checkpoints"])
def test_resume_if_present_never_removes_a_model_or_a_damaged_checkpoint(tiny, a_copy, text, left, snapshot):
    for checkpoint in (a_copy / "checkpoints").glob("step-*"):
        if left == "a damaged checkpoint":
            (checkpoint / "training.safetensors").write_bytes(b"")
        elif left == "one without its manifest":
            (checkpoint / "manifest.json").unlink()
        else:
            shutil.rmtree(checkpoint)
    before = snapshot(a_copy)
    with pytest.raises(CheckpointError, match=r"holds no (good|finished) checkpoint"):
        tiny.pretrain(a_copy, steps=12, data=text, resume="if-present")
    assert snapshot(a_copy) == before


def test_resume_is_only_advised_if_there_is_a_checkpoint(tiny, a_copy, text):
    """Else one message says --resume, and the other says without --resume."""
    shutil.rmtree(a_copy / "checkpoints")
    with pytest.raises(ConfigError, match=r"already holds a run; remove it \(--overwrite\)"):
        tiny.pretrain(a_copy, data=text)
    with pytest.raises(CheckpointError, match=r"holds no finished checkpoint .*remove what is there \(--overwrite\)"):
        tiny.pretrain(a_copy, data=text, resume=True)
    with pytest.raises(CheckpointError, match="start it without --resume"):
        tiny.pretrain(a_copy.parent / "nothing", resume=True)


def test_resume_and_overwrite_together_are_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match="choose one"):
        tiny.config(tmp_path, resume=True, overwrite=True)
