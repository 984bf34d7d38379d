"""Files that others may have made are opened and removed by `storage.files` alone: this test reads the source."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import groundling

SOURCE = Path(groundling.__file__).parent
OURS = {"files", "atomic"}
"""Modules whose functions may be called by any of the names below."""
CALLS = {
    *("open", "fdopen", "read_text", "read_bytes", "write_text", "write_bytes", "touch", "unlink", "rmdir", "rmtree"),
    *("remove", "removedirs", "safe_open", "load_file", "fromfile", "memmap", "loadtxt", "FileLock"),
}
NO_FILES = {"tarfile.open", "gzip.open", "self.open"}
"""The same names for other things; gzip and tarfile are given what was opened before, or what was checked by a hash."""

EXCEPTIONS = {
    "storage/files.py": {"read_bytes": 1, "fdopen": 3, "open": 1, "rmtree": 1, "unlink": 1},
    "storage/atomic.py": {
        **{"open": 3, "rmtree": 1, "unlink": 3, "rmdir": 2, "touch": 1, "FileLock": 1},
        **{"write_bytes": 1, "write_text": 2},
    },
    # What `files.held` or `files.open_regular` has opened.
    "storage/tensors.py": {"safe_open": 1},
    "data/token_file.py": {"memmap": 1},
    "safety/classifier.py": {"load_file": 1},
    # The null device.
    "system/output.py": {"open": 2},
    # The package's own files.
    "ladder/show.py": {"read_text": 2},
    "system/optional.py": {"read_text": 2},
    "serve/pages.py": {"read_bytes": 1},
    # What the system says of itself.
    "system/memory.py": {"read_text": 4},
    "system/hardware.py": {"open": 1},
    # A path that the user names, which may be a pipe of his shell.
    "serve/config.py": {"read_text": 1},
    "safety/rules.py": {"read_text": 1},
    "export/nanogpt.py": {"read_text": 1},
    # In a folder that this process has just made, and nobody else may write to; or that is checked to be so.
    "storage/download.py": {"write_text": 1, "unlink": 1},
    "align/report/page.py": {"read_bytes": 1},
    "train/run_folder.py": {"unlink": 1, "rmdir": 1},
    "sample/native/build.py": {"read_text": 3, "read_bytes": 2, "unlink": 3},
}
"""Module -> how many such calls it has, and why it may."""


def findings(source: str) -> Iterator[str]:
    """The names of all calls in a module that could open or remove a file by themselves."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.IfExp):
            continue
        name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
        owner = ast.unparse(called.value) if isinstance(called, ast.Attribute) else ""
        is_list = name == "remove" and owner not in ("os", "shutil")
        is_tokenizer = name == "from_file" and owner.endswith(("Tokenizer", "BPE"))
        if is_tokenizer:
            yield name
        if name in CALLS and owner not in OURS and f"{owner}.{name}" not in NO_FILES and not is_list:
            yield name


def test_one_module_opens_and_removes_what_others_may_have_made():
    modules = {str(path.relative_to(SOURCE)): path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py"))}
    found = {name: dict(Counter(findings(source))) for name, source in modules.items()}
    assert {name: calls for name, calls in found.items() if calls} == EXCEPTIONS


@pytest.mark.parametrize(
    "source",
    [
        "path.open('rb')",
        "open(path)",
        "Path(x).read_text()",
        "os.remove(path)",
        "shutil.rmtree(path)",
        "safetensors.torch.load_file(path)",
        "with safetensors.safe_open(path, 'pt') as file: pass",
        "filelock.FileLock(path)",
        "np.memmap(path)",
        "tokenizers.Tokenizer.from_file(path)",
    ],
)
def test_it_would_be_seen(source):
    assert list(findings(source))


def test_what_is_harmless_is_not_taken_for_it():
    assert not list(findings("files.read_bytes(path, 9)\natomic.write_text(path, '')\nnames.remove(x)\nengine.stop()"))
