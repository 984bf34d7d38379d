"""Render an untrusted chat template in a process with limited time and memory, and without files or child processes.

`rendering.py` runs it as `python -I probe.py`, with a request as JSON on stdin and the answer as JSON on stdout. It
imports nothing from the package, to start fast. The template runs in Jinja's immutable sandbox with the same extensions
as in `transformers`, so published templates work.
"""

import json
import sys
from contextlib import suppress
from typing import Any

MAX_CHARS = 100_000
"""Maximum length of a rendered conversation; the probes are short."""


def limit_resources(cpu_s: int, memory_bytes: int) -> None:
    """Limit this process to what rendering needs, where the system supports limits."""
    try:
        import resource
    except ImportError:  # Windows, where only the caller's timeout applies
        return
    limits = {"RLIMIT_CPU": cpu_s, "RLIMIT_AS": memory_bytes, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0}
    for name, most in limits.items():
        with suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (most, most))


def make_environment() -> Any:
    """Set up Jinja as `transformers` does, except for the clock: a template that needs it cannot be stored as data."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag around generated text, which renders its content unchanged."""

        tags = {"generation"}  # noqa: RUF012 - as the base class declares it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(str(message)[:200])

    def strftime_now(_: str) -> str:
        raise jinja2.TemplateError("it asks for the date")

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment


def render_all(request: dict[str, Any]) -> list[dict[str, str]]:
    """Render each probe; return its text, or the error."""
    try:
        template = make_environment().from_string(request["template"])
    except Exception as error:  # a hostile template can raise anything in the compiler
        return [_failure(error)] * len(request["probes"])
    answers = []
    for probe in request["probes"]:
        try:
            answers.append({"text": _rendered(template, {**request["tokens"], **probe})})
        except Exception as error:
            answers.append(_failure(error))
    return answers


def _rendered(template: Any, variables: dict[str, Any]) -> str:
    parts, n_chars = [], 0
    for part in template.generate(**variables):
        parts.append(part)
        n_chars += len(part)
        if n_chars > MAX_CHARS:
            raise ValueError(f"more than {MAX_CHARS:,} characters for a short conversation")
    return "".join(parts)


def _failure(error: BaseException) -> dict[str, str]:
    text = ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))[:200]
    return {"error": "".join(character if character.isprintable() else "?" for character in text)}


if __name__ == "__main__":
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]  # -I omits folders where jinja2 may be installed
    import jinja2.sandbox  # noqa: F401 - while files can still be opened

    limit_resources(**request["limits"])
    json.dump(render_all(request), sys.stdout)
