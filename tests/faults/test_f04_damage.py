"""Row 4: damage to any file of a checkpoint is named; resume goes on from the previous good one and says why."""

import pytest

from faultkit import DAMAGE, cut_in_half, flip_a_bit
from groundling.bundle import load_bundle
from groundling.cli import main
from groundling.errors import CheckpointError
from groundling.storage.manifest import MANIFEST, change_facts, check_manifest, read_manifest
from groundling.train.checkpoints.checkpoint import Checkpoints
from groundling.train.run_folder import find_resumable

FILES = (
    "bundle/config.json",
    "bundle/model.safetensors",
    "bundle/tokenizer.json",
    "training.safetensors",
    "state.json",
    MANIFEST,
)


@pytest.fixture
def text(finished_run):
    return {"path": str(finished_run.parent / "text.txt")}


@pytest.fixture
def newest(a_copy):
    old, new = Checkpoints(a_copy / "checkpoints").finished()
    assert (old.name, new.name) == ("step-00000005", "step-00000010")
    return new


def test_these_are_all_the_files(newest):
    found = {path.relative_to(newest).as_posix() for path in newest.rglob("*") if path.is_file()}
    assert found == set(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE, ids=["flip", "cut", "append", "delete"])
def test_each_damage_to_each_file_is_named_and_skipped(a_copy, newest, name, damage, capsys):
    damage(newest / name)
    with pytest.raises(CheckpointError, match=name) as caught:
        check_manifest(newest)
    assert "\n" not in str(caught.value)
    path, skipped = find_resumable(a_copy)
    assert path.name == "step-00000005"
    assert skipped == [str(caught.value)]
    assert main(["verify-checkpoint", str(a_copy)]) == 1
    out, err = capsys.readouterr()
    assert f"BAD   {caught.value}" in out
    assert "1 of 3 are damaged" in err


def test_all_of_the_manifest_counts(newest):
    """Also of what it says beside its files: whose it is, and the loss that decides what is kept."""
    path = newest / MANIFEST
    good, facts = path.read_bytes(), read_manifest(newest)
    unseen = []
    for place in range(0, len(good), 3):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        try:
            found = read_manifest(newest)
        except CheckpointError:
            continue
        if found != facts:
            unseen.append(place)
    assert unseen == []


@pytest.mark.parametrize("name", ["training.safetensors", MANIFEST])
def test_the_run_resumes_from_the_previous_checkpoint_to_the_same_end(
    tiny, a_copy, newest, text, name, last_bytes, losses, capsys
):
    flip_a_bit(newest / name)
    summary = tiny.pretrain(a_copy, resume=True, steps=15, data=text)
    assert summary.figures["steps"] == 15
    said = capsys.readouterr().err
    assert f"skipped: {newest / name} is damaged" in said
    assert f"resuming from {newest.with_name('step-00000005')}" in said
    check_manifest(newest)  # written anew
    tiny.pretrain(a_copy.parent / "unbroken", steps=15, data=text)
    assert last_bytes(a_copy) == last_bytes(a_copy.parent / "unbroken")
    assert losses(a_copy) == losses(a_copy.parent / "unbroken")


def test_a_damaged_later_checkpoint_replaces_no_intact_one(tiny, a_copy, newest, text):
    """It has a higher step and a better loss than any; what is saved after the resume is kept all the same."""
    change_facts(newest, {"val_loss": 0.0})
    flip_a_bit(newest / "training.safetensors")
    tiny.pretrain(a_copy, resume=True, steps=7, data=text, save_every=1, eval_every=1, keep_checkpoints=1)
    path, skipped = find_resumable(a_copy)
    assert path.name == "step-00000007"
    assert len(skipped) == 1


def test_a_damaged_old_one_does_not_stop_the_run(tiny, a_copy, newest, text):
    """Looking for what may be pruned meets a manifest that cannot be read."""
    old = newest.with_name("step-00000005")
    cut_in_half(old / MANIFEST)
    summary = tiny.pretrain(a_copy, resume=True, steps=20, data=text)
    assert summary.reason == "finished"
    assert old.is_dir(), "whose it is cannot be known, so it is left alone"


def test_a_damaged_best_one_is_not_what_a_run_leaves(tiny, a_copy, newest, text, capsys):
    old = newest.with_name("step-00000005")
    change_facts(old, {"val_loss": 0.0})
    flip_a_bit(old / "bundle/model.safetensors")
    with pytest.raises(CheckpointError, match=r"step-00000005/bundle/model.safetensors is damaged"):
        load_bundle(old)
    assert tiny.pretrain(a_copy, resume=True, steps=12, data=text).reason == "finished"
    assert f"skipped: {old / 'bundle/model.safetensors'} is damaged" in capsys.readouterr().err
    assert read_manifest(a_copy / "bundle")["checkpoint"] in ("step-00000010", "step-00000012")
    load_bundle(a_copy)


@pytest.mark.parametrize("damage", DAMAGE, ids=["flip", "cut", "append", "delete"])
def test_without_an_intact_checkpoint_the_run_is_not_silently_restarted(tiny, a_copy, text, damage, snapshot):
    for checkpoint in Checkpoints(a_copy / "checkpoints").finished():
        damage(checkpoint / "state.json")
    before = snapshot(a_copy)
    with pytest.raises(CheckpointError, match=r"no good checkpoint to resume from: .*step-00000010.*; .*step-00000005"):
        tiny.pretrain(a_copy, resume=True, steps=15, data=text)
    assert snapshot(a_copy) == before


def test_with_no_checkpoint_at_all_neither(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="no finished checkpoint to resume from; start it without --resume"):
        tiny.pretrain(tmp_path / "nothing", resume=True)


def test_a_whole_run_is_found_good(a_copy, capsys):
    assert main(["verify-checkpoint", str(a_copy)]) == 0
    assert capsys.readouterr().out.count("good  ") == 3


def test_a_damaged_record_stops_no_run(tiny, tmp_path, last_bytes, capsys):
    """It is a record of the run and nothing that it is made of."""
    tiny.pretrain(tmp_path / "whole")
    folder = tmp_path / "halves"
    tiny.pretrain(folder, steps=10)
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"loss"', b'"lo\xff\x00s')
    metrics.write_bytes(b"".join(lines))
    (folder / "summary.json").write_bytes(b"{\xff")
    (folder / "env.json").write_bytes(b"[" * 9999)
    capsys.readouterr()
    tiny.pretrain(folder, resume=True)
    assert f"{metrics}: skipped 1 damaged line\n" in capsys.readouterr().err
    assert last_bytes(folder) == last_bytes(tmp_path / "whole")
