"""Text to token files: the lecture's numbers, chunks that encode as the whole, a cache that is found and mended."""

import gzip
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from groundling.data import datasets, text_files
from groundling.data.corpus import DataConfig, prepare
from groundling.errors import ConfigError, DataError
from groundling.storage import atomic
from groundling.text import gpt2
from groundling.text.build import TokenizerConfig, spread, train_tokenizer
from groundling.text.char import CharTokenizer
from groundling.text.chunking import chunks, last_safe_cut
from groundling.text.serialize import save_tokenizer

KINDS = ["char", "gpt2", "bpe", "unigram", "sp_bpe"]
LINES = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n\n"


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def plays():
    return datasets.get("tiny_shakespeare").read_text("utf-8")


def own(path: Path, **fields) -> DataConfig:
    return DataConfig(path=str(path), **fields)


def text_of(corpus) -> str:
    decode = corpus.tokenizer.decode
    return decode(corpus.train.ids.tolist()) + decode(corpus.val.ids.tolist())


@pytest.fixture
def plays_file(plays, tmp_path, own_cache):
    """In a cache of its own, or tokens that an earlier program made would be found."""
    path = tmp_path / "plays.txt"
    path.write_text(plays)
    return path


def test_tiny_shakespeare_has_the_numbers_of_the_lecture(plays, plays_file):
    corpus = prepare(own(plays_file), block_size=256)
    assert (len(corpus.train), len(corpus.val), corpus.tokenizer.vocab_size) == (1_003_854, 111_540, 65)
    chars = sorted(set(plays))
    stoi = {ch: i for i, ch in enumerate(chars)}
    n = int(0.9 * len(plays))
    assert corpus.train.ids.tolist() == [stoi[c] for c in plays[:n]]
    assert corpus.val.ids.tolist() == [stoi[c] for c in plays[n:]]
    assert corpus.train.ids.dtype == np.uint16
    assert corpus.val_part.bytes_per_token == 1.0


def test_it_is_the_default(plays_file, monkeypatch):
    here = prepare(own(plays_file), block_size=256).fingerprint
    monkeypatch.delenv("GROUNDLING_CACHE")
    assert prepare(DataConfig(), block_size=256).fingerprint == here


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_part_decodes_to_its_part_of_the_text(kind, plays, plays_file, own_cache, monkeypatch):
    if kind == "gpt2":
        monkeypatch.delenv("GROUNDLING_CACHE")
        shutil.copytree(gpt2.gpt2_vocabulary().parent, own_cache / "gpt2")
        monkeypatch.setenv("GROUNDLING_CACHE", str(own_cache))
    corpus = prepare(own(plays_file, tokenizer=TokenizerConfig(kind=kind)), block_size=8)
    n = int(0.9 * len(plays))
    assert corpus.tokenizer.decode(corpus.train.ids) == plays[:n]
    assert corpus.tokenizer.decode(corpus.val.ids) == plays[n:]
    assert corpus.val_part.n_chars == len(plays) - n
    assert corpus.val_part.n_bytes == len(plays[n:].encode())
    assert corpus.val_part.n_tokens == len(corpus.val)


@pytest.fixture(scope="session")
def tokenizers(plays):
    def train(kind):
        return train_tokenizer(TokenizerConfig(kind=kind, vocab_size=400), "", [plays[:100_000]], 100_000)

    return {kind: train(kind) for kind in KINDS if kind != "char"}


WORDS = st.sampled_from(["a", "the", "!", "'s", "9", "é", " ", "  ", "\n", "\n\n", "\r\n", "\t", "\x1c", "\u3000"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_parts_of_a_cut_encode_to_what_the_whole_does(kind, tokenizers):
    """The texts are rich in all kinds of blanks, and each is cut where the head of it may be cut last."""
    encode = tokenizers[kind].encode

    @settings(max_examples=300)
    @given(st.lists(WORDS, max_size=20).map("".join), st.lists(WORDS, max_size=20).map("".join))
    def law(head, tail):
        cut = last_safe_cut(head)
        text = head + tail
        assert cut == 0 or encode(text[:cut]) + encode(text[cut:]) == encode(text)

    law()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_chunk_by_chunk_is_the_whole(kind, tokenizers, plays):
    tokenizer, text = tokenizers[kind], plays[:120_000]
    cut = list(chunks(iter([text]), 1000))
    assert len(cut) > 100
    assert [token for chunk in cut for token in tokenizer.encode(chunk)] == tokenizer.encode(text)


def test_a_chunk_never_ends_between_two_blanks():
    """Cut after a newline, "a\\n\\n" would end in one piece for GPT-2 where the whole text has two."""
    assert list(chunks(iter(["ab\n\ncd  ef gh"]), 6)) == ["ab", "\n\ncd", "  ef", " gh"]


def test_a_text_without_blanks_is_cut_anyhow():
    text = "x" * 5000
    cut = list(chunks((text[i : i + 7] for i in range(0, 5000, 7)), 100))
    assert max(map(len, cut)) == 100
    assert "".join(cut) == text


@pytest.mark.slow
@given(st.lists(st.text(max_size=5)), st.integers(0, 30), st.integers(0, 30))
def test_a_span_of_a_stream_is_a_slice_of_the_text(pieces, start, stop):
    assert "".join(text_files.span(iter(pieces), start, stop)) == "".join(pieces)[start:stop]


def test_training_looks_at_all_parts_of_a_long_text():
    chosen = list(spread((f"{n:010}" for n in range(1000)), 10_000, 100))
    assert 10 <= len(chosen) <= 11
    assert [int(chunk) // 100 for chunk in chosen[:10]] == list(range(10))
    assert len(list(spread(["ab"] * 5, 10, 1000))) == 5


@pytest.mark.parametrize("ending", [".txt", ".gz", ".zst"])
def test_packed_files_are_read_directly(ending, tmp_path, own_cache):
    text = (LINES * 50).encode()
    pack = {".txt": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[ending]
    path = tmp_path / f"text{ending}"
    path.write_bytes(pack(text[:1000]) + pack(text[1000:]))  # two members or frames, as `cat` makes
    assert text_of(prepare(own(path), 8)) == text.decode()


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path, own_cache):
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for name, text in {"c.md": "third\n", "b/x.txt": "second", "a.txt": "first\n"}.items():
        (folder / name).write_text(text)
    for name in ("image.png", ".hidden/x.txt", ".x.txt"):
        (folder / name).write_bytes(b"\xff")
    assert text_of(prepare(own(folder, val_fraction=0.5), 2)) == "first\nsecond\nthird\n"
    assert text_of(prepare(own(f"{folder}/**/*.txt", val_fraction=0.5), 2)) == "first\nsecond"


@pytest.mark.parametrize("path", ["nothing.txt", "none*.txt", "empty", "/dev/null"])
def test_no_text_is_a_clear_error(path, tmp_path, own_cache):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no text|not a file"):
        prepare(own(tmp_path / path), 8)


@pytest.mark.parametrize(
    "fields", [{"val_fraction": 0.0}, {"val_fraction": 1.0}, {"val_fraction": float("nan")}, {"path": ""}]
)
def test_settings_that_cannot_work_are_refused(fields):
    with pytest.raises(ConfigError):
        DataConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "bpe", "vocab_size": 255},
        {"kind": "unigram", "vocab_size": 256},
        {"unknown": "replace"},
        {"replacement": "x"},
        {"unknown": "replace", "replacement": "xy"},
        {"train_chars": 0},
    ],
)
def test_tokenizer_settings_that_cannot_work_are_refused(fields):
    with pytest.raises(ConfigError, match="tokenizer"):
        TokenizerConfig(**fields)


def test_the_second_time_nothing_is_made(tmp_path, own_cache):
    path = tmp_path / "text.txt"
    path.write_text(LINES * 20)
    first = prepare(own(path), 8)
    operations = []
    observer = lambda operation, _: operations.append(operation)  # noqa: E731
    atomic.observers.append(observer)
    try:
        again = prepare(own(path), 8)
    finally:
        atomic.observers.remove(observer)
    assert again.fingerprint == first.fingerprint
    assert operations == []


def test_another_text_or_another_cut_has_another_fingerprint(tmp_path, own_cache):
    path, other = tmp_path / "text.txt", tmp_path / "other.txt"
    path.write_text(LINES * 20)
    other.write_text(LINES * 19 + LINES.upper())
    bpe = TokenizerConfig(kind="bpe", vocab_size=300)
    configs = [own(path), own(other), own(path, val_fraction=0.2), own(path, tokenizer=bpe)]
    assert len({prepare(config, 8).fingerprint for config in configs}) == 4


@pytest.mark.parametrize("name", ["train.tok", "val.tok", "corpus.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "empty"])
def test_a_damaged_cache_is_made_again_with_a_word(name, damage, tmp_path, own_cache, capsys):
    path = tmp_path / "text.txt"
    path.write_text(LINES * 20)
    first = prepare(own(path), 8)
    victim = next(own_cache.rglob(name))
    data = bytearray(victim.read_bytes())
    data[-4] ^= 1
    victim.unlink()
    if damage != "remove":
        victim.write_bytes({"flip": data, "cut": data[:-1], "empty": b""}[damage])
    if name == "corpus.json" and damage == "cut":
        victim.write_bytes(data[:-3])  # its last byte is only a newline
    assert text_of(prepare(own(path), 8)) == LINES * 20
    assert prepare(own(path), 8).fingerprint == first.fingerprint
    assert "prepared again" in capsys.readouterr().err


def test_what_a_crash_left_behind_is_swept(tmp_path, own_cache):
    path = tmp_path / "text.txt"
    path.write_text(LINES * 20)

    class CrashPoint(BaseException): ...

    def crash(operation, where):
        if operation == "replace" and where.name == "corpus":
            raise CrashPoint

    atomic.observers.append(crash)
    try:
        with pytest.raises(CrashPoint):
            prepare(own(path), 8)
    finally:
        atomic.observers.remove(crash)
    assert list(own_cache.rglob(".tmp-*"))
    assert text_of(prepare(own(path), 8)) == LINES * 20
    assert not list(own_cache.rglob(".tmp-*"))


def test_a_text_that_changes_while_it_is_read_is_not_taken(tmp_path, own_cache):
    path = tmp_path / "text.txt"
    path.write_text(LINES * 20)

    def grow(operation, where):
        if operation == "open" and "val.tok" in where.name:
            with path.open("a") as file:
                file.write("b")

    atomic.observers.append(grow)
    try:
        with pytest.raises(DataError, match="changed while it was read"):
            prepare(own(path), 8)
    finally:
        atomic.observers.remove(grow)
    assert not list(own_cache.rglob("*.tok"))
    assert text_of(prepare(own(path), 8)) == LINES * 20 + "b"


def _prepare_in_child(path, queue):
    queue.put(prepare(own(path, tokenizer=TokenizerConfig(kind="bpe", vocab_size=300)), 8).fingerprint)


@pytest.mark.slow
def test_processes_that_prepare_the_same_text_agree(tmp_path, own_cache):
    path = tmp_path / "text.txt"
    path.write_text(LINES * 2000)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    children = [context.Process(target=_prepare_in_child, args=(path, queue)) for _ in range(3)]
    for child in children:
        child.start()
    assert len({queue.get(timeout=60) for _ in children}) == 1
    for child in children:
        child.join()


def test_a_saved_tokenizer_can_be_used_for_another_text(tmp_path, own_cache):
    save_tokenizer(CharTokenizer.from_text(LINES + "XYZ"), tmp_path)
    path = tmp_path / "text.txt"
    path.write_text(LINES * 20)
    corpus = prepare(own(path, tokenizer=TokenizerConfig(path=str(tmp_path))), 8)
    assert corpus.tokenizer.vocab_size == len(set(LINES + "XYZ"))
    assert corpus.fingerprint == prepare(own(path), 8, CharTokenizer.from_text(LINES + "XYZ")).fingerprint
    path.write_text(LINES * 20 + "é")
    with pytest.raises(DataError, match=r"1 characters .* 'é'"):
        prepare(own(path, tokenizer=TokenizerConfig(path=str(tmp_path))), 8)


PEAK = """
import sys
from pathlib import Path
from groundling.data.corpus import DataConfig, TokenizerConfig, prepare
def peak_mb():
    # Not `getrusage`: Linux has a child begin with the peak of its parent there.
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1024
small, large, kind = sys.argv[1:]
made = TokenizerConfig(kind=kind, vocab_size=400)
prepare(DataConfig(path=small, tokenizer=made), 8)
before = peak_mb()
corpus = prepare(DataConfig(path=large, tokenizer=made), 8)
print(peak_mb() - before, corpus.train_part.n_chars + corpus.val_part.n_chars)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(("kind", "n_mb", "most_mb"), [("char", 100, 60), ("gpt2", 30, 200), ("bpe", 12, 200)])
def test_memory_does_not_grow_with_the_text(kind, n_mb, most_mb, tmp_path, own_cache, plays):
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    small.write_text(plays[:10_000] + "".join(sorted(set(plays))) * 10)
    with large.open("w") as file:
        while file.tell() < n_mb * 1_000_000:
            file.write(plays)
    command = [sys.executable, "-c", PEAK, str(small), str(large), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown_mb, n_chars = map(float, done.stdout.split())
    assert n_chars == large.stat().st_size
    assert grown_mb < most_mb
