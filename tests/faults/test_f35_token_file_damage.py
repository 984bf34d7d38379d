"""Row 35: a token file that is cut, grown or foreign is named, and one in use can be replaced."""

import struct

import numpy as np
import pytest

from groundling.data.token_file import open_token_file, write_token_file
from groundling.errors import DataError
from groundling.storage import atomic

IDS = np.arange(1000) % 65


@pytest.fixture
def path(tmp_path):
    write_token_file(tmp_path / "train.tok", [IDS], 65)
    return tmp_path / "train.tok"


DAMAGE = {
    "cut by a byte": lambda data: data[:-1],
    "cut by an id": lambda data: data[:-2],
    "cut in the header": lambda data: data[:100],
    "empty": lambda data: b"",
    "grown by a byte": lambda data: data + b"\0",
    "grown by an id": lambda data: data + b"\0\0",
    "another magic": lambda data: b"X" + data[1:],
    "a later version": lambda data: data[:8] + struct.pack("<I", 2) + data[12:],
    "ids without a header": lambda data: data[128:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_without_reading_all(path, damage):
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(DataError, match=r"train\.tok is damaged"):
        open_token_file(path)


def test_a_flipped_bit_is_found_when_asked(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    open_token_file(path)
    with pytest.raises(DataError, match=r"train\.tok is damaged: its ids are not those"):
        open_token_file(path, verify=True)


@pytest.mark.parametrize("name", ["nothing.tok", "."])
def test_what_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(DataError, match="cannot be read"):
        open_token_file(tmp_path / name)


def test_a_reader_keeps_what_it_has_mapped_while_the_file_is_replaced(path):
    before = open_token_file(path)
    write_token_file(path, [IDS[:10]], 65)
    assert before.ids.tolist() == IDS.tolist()
    assert open_token_file(path).ids.tolist() == IDS[:10].tolist()


def test_a_reader_cannot_change_it(path):
    with pytest.raises(ValueError, match="read-only"):
        open_token_file(path).ids[0] = 1


class CrashPointError(BaseException):
    """Stands for the power that fails."""


def test_a_crash_at_any_operation_leaves_the_old_or_the_new(path):
    """And the header, which is written last, is on disk before the name is."""
    operations = []

    def crash_at(number):
        def observer(operation, where):
            operations.append(operation)
            if len(operations) > number:
                raise CrashPointError

        operations.clear()
        atomic.observers.append(observer)
        try:
            write_token_file(path, [IDS[:10]], 65)
        except CrashPointError:
            return True
        finally:
            atomic.observers.remove(observer)
        return False

    n = 0
    while crash_at(n):
        assert len(open_token_file(path, verify=True)) in (1000, 10)
        n += 1
    assert n >= 6
    assert operations == ["open", "write", "write", "write", "fsync", "replace", "fsync_folder"]
    assert len(open_token_file(path, verify=True)) == 10
