"""Reading a pickle can run any code. The package never does, and has no way to: this test reads its source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import groundling

SOURCE = Path(groundling.__file__).parent
ALLOWED = {"export/nanogpt.py"}
"""Paths in the package that may read a foreign pickle, with `weights_only=True`: at most one, an explicit import."""

MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
READERS = {"torch.load", "torch.save", "torch.jit.load", "torch.serialization.load", "np.load", "numpy.load"}
FLAGS = {("weights_only", False), ("allow_pickle", True)}


def findings(source: str) -> Iterator[str]:
    """Everything in a module that reads or writes pickles."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (f"import {alias.name}" for alias in names if alias.name.split(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module), names=names):
                for alias in names:
                    if module.split(".")[0] in MODULES or f"{module}.{alias.name}" in READERS:
                        yield f"from {module} import {alias.name}"
            case ast.Attribute() if ast.unparse(node) in READERS:
                yield ast.unparse(node)
            case ast.keyword(arg=str(name), value=ast.Constant(value=value)) if (name, value) in FLAGS:
                yield f"{name}={value}"
            case ast.Constant(value=str(text)) if text in MODULES:
                yield f"the name {text!r}"  # __import__("pickle"), importlib.import_module("pickle")


def test_the_package_reads_no_pickle():
    modules = sorted(SOURCE.rglob("*.py"))
    assert len(modules) > 10
    found = {
        str(path.relative_to(SOURCE)): list(findings(path.read_text(encoding="utf-8")))
        for path in modules
        if str(path.relative_to(SOURCE)) not in ALLOWED
    }
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_at_most_one_module_may():
    assert len(ALLOWED) <= 1
    for name in ALLOWED:
        assert "weights_only=False" not in list(findings((SOURCE / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, dill as d",
        "def f():\n    from pickle import loads",
        "from torch import load",
        "from torch.serialization import load as read",
        "state = torch.load(path)",
        "torch.save(x, path)",
        "read = torch.load",
        "import numpy as np\nnp.load('a.npy')",
        "anything(path, weights_only=False)",
        "anything(path, allow_pickle=True)",
        "__import__('pickle').loads(data)",
        "importlib.import_module('cloudpickle')",
    ],
)
def test_it_would_be_seen(source):
    assert list(findings(source))


def test_what_is_harmless_is_not_taken_for_a_pickle():
    assert not list(findings("import json\nload_bundle(path)\nsafetensors.torch.load(data)\njson.load(f)"))
