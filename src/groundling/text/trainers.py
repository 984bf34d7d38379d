"""Training of a vocabulary by a library, in a process of its own, so that Ctrl-C is heard at once.

The libraries hold the interpreter from the first sentence to the last merge; a process can be ended at any moment. The
child reads the text from standard input and writes the trained vocabulary to standard output; it ends with its parent.
"""

import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO, Literal

from groundling.errors import DataError, TrainingError
from groundling.system.optional import missing_extra
from groundling.system.progress import Progress

Kind = Literal["bpe", "unigram", "sp_bpe"]
BLANK = "\u2581"
"""SentencePiece writes a space as this character."""
MAX_CHARS = 1000
"""Longer words are cut: the time of training one grows with the square of its length."""
_LENGTH = struct.Struct("<I")
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from groundling.text.trainers import main; main()"


def train(kind: Kind, texts: Iterable[str], vocab_size: int) -> bytes:
    """Train a vocabulary; return it as the library writes it.

    Args:
        kind: which library and method.
        texts: the text in pieces.
        vocab_size: ids at most.

    Raises:
        DataError: the text cannot make such a vocabulary; the library's reason is given.
        MissingExtraError: the library is not installed.
        TrainingError: the process ended without a result.
    """
    job = json.dumps({"kind": kind, "vocab_size": vocab_size})
    with tempfile.TemporaryFile() as complaints, Progress(f"training the tokenizer ({kind}, {vocab_size:,} ids)"):
        child = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path), job],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with suppress(BrokenPipeError):  # a child that cannot work says why
                _send(child.stdin, texts)
            answer = child.stdout.read()
            with suppress(BrokenPipeError):
                child.stdin.close()  # until here an open one told that we are there
            child.wait()
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
            with suppress(BrokenPipeError):
                child.stdin.close()
        return _result(answer, child.returncode, complaints)


def _result(answer: bytes, code: int, complaints: IO[bytes]) -> bytes:
    sign, rest = answer[:1], answer[1:]
    if sign == b"+":
        return rest
    if sign == b"-":
        raise DataError(rest.decode())
    if sign == b"?":
        raise missing_extra(rest.decode(), "text")
    complaints.seek(0)
    said = complaints.read().decode("utf-8", "replace").strip().splitlines()
    how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
    reason = (said or ["without a reason"])[-1]
    hint = "if memory was short, look at fewer characters: train_chars" if code < 0 else reason
    raise TrainingError(f"the process that trained the tokenizer {how}; {hint}")


def _send(pipe: IO[bytes], texts: Iterable[str]) -> None:
    for text in texts:
        data = text.encode()
        pipe.write(_LENGTH.pack(len(data)))
        pipe.write(data)
    pipe.write(_LENGTH.pack(0xFFFFFFFF))
    pipe.flush()


def main() -> None:
    """What the child does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to us too, but it is the parent's to answer
    job = json.loads(sys.argv[2])
    pipe = sys.stdin.buffer
    try:
        fit = _fit_bpe if job["kind"] == "bpe" else _fit_sentencepiece
        answer = b"+" + fit(job["kind"], _received(pipe), job["vocab_size"])
    except ImportError as error:
        answer = b"?" + (error.name or str(error)).encode()
    except DataError as error:
        answer = b"-" + str(error).encode()
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    os._exit(0)  # not a word more, and no wait for the thread that listens for the parent


def _received(pipe: IO[bytes]) -> Iterator[str]:
    while True:
        (length,) = _LENGTH.unpack(_exactly(pipe, _LENGTH.size))
        if length == 0xFFFFFFFF:
            threading.Thread(target=_end_with_parent, daemon=True).start()
            return
        yield _exactly(pipe, length).decode()


def _exactly(pipe: IO[bytes], length: int) -> bytes:
    data = pipe.read(length)
    if len(data) < length:
        os._exit(1)  # the parent is no more
    return data


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _fit_bpe(kind: str, texts: Iterable[str], vocab_size: int) -> bytes:  # noqa: ARG001
    """Byte-level BPE, cut and merged as GPT-2's, as the library's JSON."""
    import tokenizers as library

    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(short_runs(texts), trainer)
    written: str = tokenizer.to_str()
    return written.encode()


def short_runs(texts: Iterable[str], most: int = MAX_CHARS) -> Iterator[str]:
    """The same text, cut inside runs of characters without a blank, or of blanks, that are longer than `most`.

    What is cut is no word of any language; the trainer would take the square of its length for each of its merges.
    """
    # Only where a run begins: looked for everywhere, one of 900 characters would be gone through 900 times.
    pattern = re.compile(rf"(?<!\S)\S{{{most + 1},}}|(?<!\s)\s{{{most + 1},}}")
    for text in texts:
        start = 0
        for run in pattern.finditer(text):
            for cut in range(run.start() + most, run.end(), most):
                yield text[start:cut]
                start = cut
        yield text[start:]


def _fit_sentencepiece(kind: str, texts: Iterable[str], vocab_size: int) -> bytes:
    """SentencePiece's serialized model."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=sentences(texts),
            model_writer=model,
            model_type="unigram" if kind == "unigram" else "bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            required_chars=BLANK,  # else a text without a space makes a vocabulary that has none
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,  # the order of its sums, and so its vocabulary, follows from this number
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).rpartition("] ")[2].split(". Increase")[0]  # without its place in the C++ source
        raise DataError(
            f"no {kind} tokenizer of {vocab_size} ids can be trained on this text, try more ids: {reason}"
        ) from error
    return model.getvalue()


def sentences(texts: Iterable[str], most: int = MAX_CHARS) -> Iterator[str]:
    """Cut text into lines (a newline is one id anyhow, its byte), and long lines, which the trainer passes over."""
    for text in texts:
        for line in text.replace("\0", " ").replace(BLANK, " ").split("\n"):
            yield from (line[start : start + most] for start in range(0, len(line), most))
