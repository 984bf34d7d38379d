"""Row 36: no offset overflows 32 bits. The file has 5 GB and, being sparse, takes no room."""

import numpy as np
import pytest

from groundling.data.token_file import Header, open_token_file

N_BYTES = 5 * 10**9


@pytest.mark.parametrize(("itemsize", "vocab_size"), [(2, 65), (4, 70_000)])
def test_the_end_of_a_file_of_5_gb_can_be_read(tmp_path, itemsize, vocab_size):
    path, count = tmp_path / "large.tok", N_BYTES // itemsize
    header = Header(itemsize=itemsize, count=count, max_id=64, vocab_size=vocab_size, sha256=bytes(32))
    last = np.arange(50, 60, dtype=f"<u{itemsize}").tobytes()
    with path.open("wb") as file:
        file.write(header.pack())
        file.truncate(Header.LAYOUT.size + N_BYTES)
        file.seek(-len(last), 2)
        file.write(last)
    if path.stat().st_blocks * 512 > 10**8:
        pytest.skip("this file system has no sparse files")
    tokens = open_token_file(path)
    assert len(tokens) == count > 2**30
    assert tokens.ids[-10:].tolist() == list(range(50, 60))
    assert tokens.ids[count - 11 : count - 8].tolist() == [0, 50, 51]
    starts = np.array([0, 2**31 // itemsize + 1, count - 10], np.int64)
    assert tokens.ids[starts[:, None] + np.arange(10)][-1].tolist() == list(range(50, 60))
