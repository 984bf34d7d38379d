"""Row 34: an id that does not fit is refused when it is written and when it is read, never cut to 16 bits."""

import numpy as np
import pytest

from groundling.data.token_file import Header, open_token_file, write_token_file
from groundling.errors import DataError


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1, "u2"), (65_536, "u2"), (65_537, "u4"), (2**32, "u4")])
def test_the_width_follows_from_the_vocabulary(tmp_path, vocab_size, dtype):
    ids = np.array([0, vocab_size - 1, 0], np.int64)
    write_token_file(tmp_path / "t.tok", [ids[:1], ids[1:]], vocab_size)
    file = open_token_file(tmp_path / "t.tok", verify=True)
    assert file.ids.dtype == np.dtype(dtype)
    assert file.ids.tolist() == ids.tolist()
    assert (file.max_id, file.vocab_size, len(file)) == (vocab_size - 1, vocab_size, 3)


@pytest.mark.parametrize("vocab_size", [65, 65_536, 65_537])
@pytest.mark.parametrize("wrong", [-1, 0])
def test_an_id_outside_the_vocabulary_is_refused_and_nothing_is_written(tmp_path, vocab_size, wrong):
    path = tmp_path / "t.tok"
    write_token_file(path, [np.array([1])], vocab_size)
    bad = -1 if wrong else vocab_size
    with pytest.raises(DataError, match=f"token id {bad} does not fit a vocabulary of {vocab_size:,}"):
        write_token_file(path, [np.array([0, 1]), np.array([bad])], vocab_size)
    assert open_token_file(path).ids.tolist() == [1]
    assert [file.name for file in tmp_path.iterdir()] == ["t.tok"]


@pytest.mark.parametrize("vocab_size", [0, -1, 2**32 + 1])
def test_a_vocabulary_that_no_width_holds_is_refused(tmp_path, vocab_size):
    with pytest.raises(DataError, match="cannot be written"):
        write_token_file(tmp_path / "t.tok", [], vocab_size)


@pytest.mark.parametrize(
    "change", [{"max_id": 65}, {"vocab_size": 70_000}, {"itemsize": 4}, {"itemsize": 3}, {"count": -1}]
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, change):
    fields = {"itemsize": 2, "count": 0, "max_id": 64, "vocab_size": 65, "sha256": bytes(32)} | change
    (tmp_path / "t.tok").write_bytes(Header(**fields).pack())
    with pytest.raises(DataError, match=r"t\.tok is damaged: its header contradicts itself"):
        open_token_file(tmp_path / "t.tok")


def test_nothing_is_a_token_file_too(tmp_path):
    write_token_file(tmp_path / "t.tok", [], 65)
    assert len(open_token_file(tmp_path / "t.tok", verify=True)) == 0
