"""`groundling data list|get|dialogues|inspect`: what there is to learn from, and what a model is shown of it."""

import importlib
from collections.abc import Callable, Sequence

from groundling import config


def main(argv: Sequence[str]) -> int:
    """Run `groundling data list|get|dialogues|inspect`."""
    commands = {
        "list": (_of_sources("list"), "show the named data sets: source, licence, size, sha256"),
        "get": (_of_sources("get"), "fetch a data set if need be, and print where it is"),
        "dialogues": (_of_examples("write_dialogues"), "write the dialogues of plays as JSON lines, to fine-tune on"),
        "inspect": (_of_examples("inspect"), "show examples as a model sees them, and what is learned of each"),
    }
    return config.run_subcommand(argv, commands, "groundling data")


def _of_sources(name: str) -> Callable[[list[str]], int]:
    from groundling.data import datasets

    return lambda argv: datasets.main([name, *argv])


def _of_examples(function: str) -> Callable[[list[str]], int]:
    """Loaded when it is called: it needs NumPy, and a list of commands does not."""

    def run(argv: list[str]) -> int:
        code: int = getattr(importlib.import_module("groundling.data.cli"), function)(argv)
        return code

    return run
