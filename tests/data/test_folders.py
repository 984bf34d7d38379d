"""Which files a folder or a glob means, and what is said of the others."""

import os

import pytest

from groundling.data.corpus import DataConfig, prepare
from groundling.data.folders import find_files
from groundling.errors import DataError


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    for name in ("A.TXT", "b/c.Md", "d.txt"):
        (folder / name).write_text(f"{name}\n")
    return folder


def names(found, folder):
    return [path.relative_to(folder).as_posix() for path in found.paths]


def test_the_case_of_an_ending_does_not_matter(folder):
    found = find_files(str(folder))
    assert names(found, folder) == ["A.TXT", "b/c.Md", "d.txt"]
    assert found.skipped() is None


def test_links_are_followed_and_nothing_is_read_twice(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "deep" / "e.txt").write_text("e\n")
    (tmp_path / "f.txt").write_text("f\n")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "again").symlink_to(elsewhere / "deep")
    (folder / "round").symlink_to(folder)
    (elsewhere / "back").symlink_to(folder)
    (folder / "file.txt").symlink_to(tmp_path / "f.txt")
    (folder / "twice.txt").symlink_to(folder / "d.txt")
    (folder / "gone.txt").symlink_to(tmp_path / "nothing")
    found = find_files(str(folder))
    assert [path.read_text() for path in found.paths].count("e\n") == 1
    assert names(found, folder)[:3] == ["A.TXT", "again/e.txt", "b/c.Md"]
    assert "file.txt" in names(found, folder)
    assert "twice.txt" not in names(found, folder)
    assert len(found.paths) == 5
    assert found.skipped() == "4 links to what is read already; 1 broken link or special file"


def test_a_glob_that_goes_round_in_links_reads_each_file_once(folder):
    """Two circles of links are 2**40 ways to the bottom for the library's `**`."""
    (folder / "b" / "round").symlink_to(folder)
    (folder / "again").symlink_to(folder / "b")
    (folder / "d2.txt").symlink_to(folder / "d.txt")
    found = find_files(f"{folder}/**/*.txt")
    assert len({os.path.realpath(path) for path in found.paths}) == len(found.paths) == 1
    assert found.again > 0


def test_what_is_passed_over_is_counted_and_said(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "cache"))
    for name in ("x.png", "y.PNG", "z.jsonl", "w.jsonl.gz", "t.tar.gz", "README", ".hidden.txt"):
        (folder / name).write_bytes(b"\x89PNG")
    (folder / ".git").mkdir()
    (folder / "d.txt").write_text("d\n" * 100)
    prepare(DataConfig(path=str(folder)), 8)
    said = capsys.readouterr().err
    assert "6 files that are not text by name (2 .png, 1 " in said
    assert "2 hidden" in said


def test_a_folder_without_texts_says_what_it_holds(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"holds no text; .* skipped: 1 file that is not text by name \(1 .jsonl\)"):
        find_files(str(tmp_path))


def test_a_glob_says_which_folders_it_passes_over(folder):
    assert find_files(f"{folder}/*").skipped() == "1 folder (give ** to look into folders)"
    assert names(find_files(f"{folder}/**"), folder) == ["A.TXT", "b/c.Md", "d.txt"]
    with pytest.raises(DataError, match=r"give a file, a folder or a glob; skipped: 1 folder"):
        find_files(f"{folder}/?")


def test_a_name_that_is_too_long_ends_in_one_line():
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        find_files("a" * 5000)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may look anywhere")
def test_a_folder_without_permission_is_named(folder):
    (folder / "b").chmod(0)
    try:
        assert "without permission: " in (find_files(str(folder)).skipped() or "")
    finally:
        (folder / "b").chmod(0o755)
