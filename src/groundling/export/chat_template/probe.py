"""Renders a foreign chat template to text, in a process of its own that has little time, memory and nothing else.

Run by `rendering.py` while a model is imported, and by nothing else: `python -I probe.py`, with
a request as JSON on stdin and the answer as JSON on stdout. Imports nothing of the package, so that it starts at once.
The template runs in Jinja's immutable sandbox, set up as `transformers` does, so that published templates work.
"""

import json
import sys
from contextlib import suppress
from typing import Any

MAX_CHARS = 100_000
"""Of a rendered conversation: the probes are short ones."""


def limit_resources(cpu_s: int, memory_bytes: int) -> None:
    """Take from this process what rendering text does not need, where the system can."""
    try:
        import resource
    except ImportError:  # Windows; the caller's deadline holds there too
        return
    limits = {"RLIMIT_CPU": cpu_s, "RLIMIT_AS": memory_bytes, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0}
    for name, most in limits.items():
        with suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (most, most))


def make_environment() -> Any:
    """Jinja as `transformers` sets it up, but for the clock: what depends on it cannot be stored as data."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag that marks what the assistant said; it changes no text."""

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
    """Each probe's text, or why there is none."""
    try:
        template = make_environment().from_string(request["template"])
    except Exception as error:  # whatever a template makes of its compiler
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
    said = ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))[:200]
    return {"error": "".join(character if character.isprintable() else "?" for character in said)}


if __name__ == "__main__":
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]  # -I leaves out where the user may have installed jinja2
    import jinja2.sandbox  # noqa: F401 - before files are no longer opened

    limit_resources(**request["limits"])
    json.dump(render_all(request), sys.stdout)
