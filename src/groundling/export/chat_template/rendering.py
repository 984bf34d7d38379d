"""Find the chat template of a model's folder, and render it by `probe.py`."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from groundling.errors import CheckpointError, GroundlingError
from groundling.storage import files
from groundling.storage.manifest import read_json_object
from groundling.system.optional import missing_extra

JINJA, TOKENIZER_CONFIG, PROCESSOR = "chat_template.jinja", "tokenizer_config.json", "chat_template.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
MAX_CHARS = 200_000
"""Maximum length of a template; the longest published ones have about ten thousand characters."""
CPU_S, MEMORY_BYTES = 5, 1 << 30
"""Limits of the probe, where the system supports them; `TIMEOUT_S` applies everywhere."""
TIMEOUT_S = 20.0


class TemplateError(GroundlingError):
    """A chat template that cannot be read, rendered or recognised; the model is imported without one."""


def find_template(folder: Path) -> str | None:
    """Return a folder's chat template from any place that a release of transformers uses; None: there is none.

    Raises:
        TemplateError: there is one, and it cannot be read.
    """
    try:
        template = _stored(folder)
    except (OSError, ValueError, CheckpointError) as error:
        raise TemplateError(f"it cannot be read: {error}") from error
    if isinstance(template, list):  # several, by name
        template = {str(each.get("name")): each.get("template") for each in template if isinstance(each, dict)}
    if isinstance(template, dict):
        if "default" not in template:
            names = ", ".join(map(repr, template))
            raise TemplateError(f"there are several by name, and none is called default: {names[:100]}")
        template = template["default"]
    if template is None or template == "":
        return None
    if not isinstance(template, str) or len(template) > MAX_CHARS:
        raise TemplateError(f"it is not a text of at most {MAX_CHARS:,} characters")
    return template


def _stored(folder: Path) -> Any:
    """Return the value from the first of three places that has one."""
    file = folder / JINJA
    if file.exists():
        return files.read_text(file, 4 * MAX_CHARS, links=True)
    settings = _settings(folder, TOKENIZER_CONFIG)
    return settings.get("chat_template") or _settings(folder, PROCESSOR).get("chat_template")


def token_names(folder: Path) -> dict[str, str]:
    """Return the special tokens that a template may use by name: bos_token, eos_token and the like.

    Raises:
        CheckpointError: the file that lists them cannot be read.
    """
    settings = _settings(folder, TOKENIZER_CONFIG)
    if "added_tokens_decoder" not in settings:  # as in transformers
        settings = {**settings, **_settings(folder, SPECIAL_TOKENS_MAP)}
    found = {}
    for name in SPECIAL_TOKENS:
        value = settings.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            found[name] = content
    return found


def render(template: str, tokens: dict[str, str], probes: Sequence[dict[str, Any]]) -> list[str | TemplateError]:
    """Render each probe; return its text, or the error.

    Args:
        template: untrusted Jinja.
        tokens: special tokens that it may use by name.
        probes: the variables of each rendering: messages, add_generation_prompt, ...

    Raises:
        TemplateError: it takes too long or too much memory, or jinja2 is not installed.
    """
    limits = {"cpu_s": CPU_S, "memory_bytes": MEMORY_BYTES}
    request = {"template": template, "tokens": tokens, "probes": list(probes), "path": sys.path, "limits": limits}
    command = [sys.executable, "-I", str(Path(__file__).with_name("probe.py"))]
    environment = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}  # for Windows
    try:
        ended = subprocess.run(
            command,
            input=json.dumps(request),
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TemplateError(f"it did not finish within {TIMEOUT_S:.0f} s") from None
    if "No module named 'jinja2'" in ended.stderr:
        raise TemplateError(str(missing_extra("jinja2", "export")))
    try:
        answers = json.loads(ended.stdout)
        return [
            answer["text"] if "text" in answer else TemplateError(f"it fails with {answer['error']}")
            for answer in answers
        ]
    except (ValueError, KeyError, TypeError):
        raise TemplateError(
            f"it was stopped: a few conversations take more than {CPU_S} s or {MEMORY_BYTES >> 30} GiB of memory"
        ) from None


def _settings(folder: Path, name: str) -> dict[str, Any]:
    return read_json_object(folder / name, links=True) if (folder / name).exists() else {}
