"""Contestants that take turns: each has a process of its own, which answers a line of JSON by another.

So none profits from another's threads, caches or allocator, and all meet the same moods of the machine. This file
imports nothing that is installed, because a contestant may belong to another Python than ours.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any


def serve(answers: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """The life of a contestant's process: `{"do": NAME, ...}` calls answers[NAME](...); it ends with its input."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answers[request.pop("do")](**request)), file=replies, flush=True)


class EndedError(SystemExit):
    """A contestant's process ended before it answered."""


class Worker:
    """A contestant in its own process: `with Worker(name, argv, environ) as worker: worker.ask("decode", new=8)`.

    It makes itself ready on its own; the first answer is there when it is.
    """

    def __init__(self, name: str, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self.name, self._argv, self._environ = name, argv, environ

    def __enter__(self) -> "Worker":
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._argv, stdin=pipe, stdout=pipe, text=True, env=self._environ)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._process.kill()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # the end of its work
        self._process.wait()
        self._process.stdout.close()

    def ask(self, what: str, **values: object) -> dict[str, Any]:
        """Let it do something, and wait for its answer."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is gone, which `_answer` tells
            self._process.stdin.write(json.dumps({"do": what, **values}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EndedError(f"{self.name}: its process ended with code {self._process.wait()}; see above why")
        return dict(json.loads(line))
