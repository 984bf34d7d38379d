"""Run contestants in turn, each in its own process that replies to lines of JSON.

They share no threads, caches or allocator, and load on the machine affects all alike. This file imports the standard
library only, because a contestant may run in another Python.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any


def serve(answers: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Main loop of a contestant's process, until its input ends: `{"do": NAME, ...}` calls answers[NAME](...)."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries goes to stderr
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answers[request.pop("do")](**request)), file=replies, flush=True)


class EndedError(SystemExit):
    """A contestant's process exited before it replied."""


class Worker:
    """A contestant in its own process: `with Worker(name, argv, environ) as worker: worker.ask("decode", new=8)`.

    It loads in the background; the first reply waits for that.
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
            self._process.stdin.close()  # ends its main loop
        self._process.wait()
        self._process.stdout.close()

    def ask(self, what: str, **values: object) -> dict[str, Any]:
        """Send a request, and wait for its reply."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has exited, which `_answer` reports
            self._process.stdin.write(json.dumps({"do": what, **values}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EndedError(f"{self.name}: its process exited with code {self._process.wait()}; see its output above")
        return dict(json.loads(line))
