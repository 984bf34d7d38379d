"""`groundling verify-checkpoint`: every file that was changed is named, and what is whole is called good."""

import shutil

import pytest

from groundling.errors import CheckpointError
from groundling.tools import verify


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "copy")


def test_a_whole_run_is_good(run, capsys):
    assert verify.main([str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"good  {run / 'checkpoints' / 'step-00000003'}",
        f"good  {run / 'checkpoints' / 'step-00000006'}",
        f"good  {run / 'bundle'}",
    ]
    assert all(", validation loss 2." in line for line in lines[:2])


@pytest.mark.parametrize("part", ["bundle", "checkpoints/step-00000003"])
def test_a_checkpoint_or_a_bundle_alone(run, part, capsys):
    assert verify.main([str(run / part)]) == 0
    assert capsys.readouterr().out.count("good") == 1


@pytest.mark.parametrize("name", ["training.safetensors", "state.json", "bundle/model.safetensors"])
def test_one_bit_is_found_and_the_file_is_named(run, name, capsys):
    file = run / "checkpoints" / "step-00000003" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="1 of 3 are damaged"):
        verify.main([str(run)])
    out = capsys.readouterr().out
    assert f"BAD   {file} " in out
    assert out.count("good") == 2


def test_a_folder_with_nothing_to_check(tmp_path):
    with pytest.raises(CheckpointError, match="give the folder of one, or of a run"):
        verify.main([str(tmp_path)])
