"""Train a vocabulary with a library in a child process, which Ctrl-C can interrupt.

The libraries hold the interpreter lock for the whole training. The child reads the text from stdin and writes the
vocabulary to stdout; it exits with its parent.
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
"""SentencePiece's character for a space."""
MAX_CHARS = 1000
"""Longer words are cut, because training time grows with the square of a word's length."""
_LENGTH = struct.Struct("<I")
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from groundling.text.trainers import main; main()"


def train(kind: Kind, texts: Iterable[str], vocab_size: int) -> bytes:
    """Train a vocabulary; return it as the library serializes it.

    Args:
        kind: library and method.
        texts: pieces of the text.
        vocab_size: maximum number of ids.

    Raises:
        DataError: the text is too small for such a vocabulary; the library's reason is given.
        MissingExtraError: the library is not installed.
        TrainingError: the child ended without a result.
    """
    job = json.dumps({"kind": kind, "vocab_size": vocab_size})
    with tempfile.TemporaryFile() as errors, Progress(f"training the tokenizer ({kind}, {vocab_size:,} ids)"):
        child = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path), job],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with suppress(BrokenPipeError):  # the child's error message
                _send(child.stdin, texts)
            answer = child.stdout.read()
            with suppress(BrokenPipeError):
                child.stdin.close()  # until here, the open pipe shows the child that its parent is alive
            child.wait()
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
            with suppress(BrokenPipeError):
                child.stdin.close()
        return _result(answer, child.returncode, errors)


def _result(answer: bytes, code: int, errors: IO[bytes]) -> bytes:
    sign, rest = answer[:1], answer[1:]
    if sign == b"+":
        return rest
    if sign == b"-":
        raise DataError(rest.decode())
    if sign == b"?":
        raise missing_extra(rest.decode(), "text")
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
    reason = (lines or ["without a reason"])[-1]
    hint = "if memory ran out, train on fewer characters: train_chars" if code < 0 else reason
    raise TrainingError(f"the process that trained the tokenizer {how}; {hint}")


def _send(pipe: IO[bytes], texts: Iterable[str]) -> None:
    for text in texts:
        data = text.encode()
        pipe.write(_LENGTH.pack(len(data)))
        pipe.write(data)
    pipe.write(_LENGTH.pack(0xFFFFFFFF))
    pipe.flush()


def main() -> None:
    """Run the child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal signals the child too; the parent handles it
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
    os._exit(0)  # exit at once, without joining the thread that watches the parent


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
        os._exit(1)  # the parent has exited
    return data


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _fit_bpe(kind: str, texts: Iterable[str], vocab_size: int) -> bytes:  # noqa: ARG001
    """Train byte-level BPE with GPT-2's pre-tokenizer; return the library's JSON."""
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
    """Cut runs of characters without a blank, or of blanks, after `most` characters.

    Real words are shorter; the trainer's time for each merge grows with the square of the run.
    """
    # Match only at the start of a run: otherwise a run of 900 characters is scanned 900 times.
    pattern = re.compile(rf"(?<!\S)\S{{{most + 1},}}|(?<!\s)\s{{{most + 1},}}")
    for text in texts:
        start = 0
        for run in pattern.finditer(text):
            for cut in range(run.start() + most, run.end(), most):
                yield text[start:cut]
                start = cut
        yield text[start:]


def _fit_sentencepiece(kind: str, texts: Iterable[str], vocab_size: int) -> bytes:
    """Train SentencePiece; return its serialized model."""
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
            required_chars=BLANK,  # otherwise a text without spaces gives a vocabulary without one
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,  # fixes the order of its sums, and so its vocabulary
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).rpartition("] ")[2].split(". Increase")[0]  # without the position in the C++ source
        raise DataError(
            f"no {kind} tokenizer of {vocab_size} ids can be trained on this text, try more ids: {reason}"
        ) from error
    return model.getvalue()


def sentences(texts: Iterable[str], most: int = MAX_CHARS) -> Iterator[str]:
    """Split text into lines (a newline is encoded as its byte anyway), and cut lines too long for the trainer."""
    for text in texts:
        for line in text.replace("\0", " ").replace(BLANK, " ").split("\n"):
            yield from (line[start : start + most] for start in range(0, len(line), most))
