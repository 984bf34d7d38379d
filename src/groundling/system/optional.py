"""Optional packages: imported on use; if one is missing, the error has the command that installs it.

The project is not on PyPI, so `pip install 'groundling[serve]'` does not work. The right command depends on the
installation: with a checkout, pip gets its path; with a wheel, the packages are listed one by one.
"""

import importlib
import json
import re
import shlex
import shutil
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from groundling.errors import ConfigError, MissingExtraError

NAME = "groundling"


def optional_import(module: str, extra: str, package: str | None = None) -> Any:
    """Import a module of an optional package.

    Args:
        module: dotted name.
        extra: the extra that contains the package.
        package: name on PyPI, if it differs from the module's top level.

    Raises:
        MissingExtraError: the package or one of its dependencies is not installed.
        ConfigError: the package is installed but cannot be imported.
    """
    top = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or top).partition(".")[0]
        raise missing_extra(package or top if missing == top else missing, extra) from error
    except ImportError as error:
        name = package or top
        again = f"{_pip()} --force-reinstall --no-deps {name}"
        raise ConfigError(f"the package {name!r} cannot be imported ({error}); install it again: {again}") from error


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """The error for a missing package, with the command that installs its extra."""
    return MissingExtraError(package, extra, install_command(extra))


def install_command(extra: str) -> str:
    """The shell command that installs an extra into this environment."""
    if (checkout := _checkout()) is not None:
        return f"{_pip()} -e {shlex.quote(f'{checkout}[{extra}]')}"
    if (source := _installed_from()) is not None:
        return f"{_pip()} {shlex.quote(f'{source}[{extra}]')}"
    return f"{_pip()} {' '.join(map(shlex.quote, requirements(extra)))}"


def requirements(extra: str) -> list[str]:
    """Requirements of an extra in pip's syntax, from the metadata of the installed package.

    Raises:
        PackageNotFoundError: the package is not installed.
    """
    in_extra = re.compile(rf"""extra == ['"]{re.escape(extra)}['"]""")
    split = (text.partition(";") for text in distribution(NAME).requires or ())
    return [need.strip() for need, _, marker in split if in_extra.search(marker)]


def _checkout() -> Path | None:
    """The checkout that contains this code (installed with `-e`, or on PYTHONPATH), if any."""
    root = Path(__file__).resolve().parents[3]
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return root if project.get("project", {}).get("name") == NAME else None


def _installed_from() -> Path | None:
    """The folder or wheel that pip installed from, if it still exists (PEP 610)."""
    try:
        record = json.loads(distribution(NAME).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    url = urlsplit(record.get("url", ""))
    if url.scheme != "file":
        return None
    path = Path(url2pathname(url.path))
    return path if path.is_file() or (path / "pyproject.toml").is_file() else None


def _pip() -> str:
    """The pip command that installs into this environment."""
    found = shutil.which("pip")
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return "pip install"
    if not _has_pip() and shutil.which("uv"):
        return f"uv pip install --python {shlex.quote(sys.executable)}"
    return f"{shlex.quote(sys.executable)} -m pip install"


def _has_pip() -> bool:
    """Whether `python -m pip` works; uv creates environments without pip."""
    try:
        return bool(distribution("pip"))
    except PackageNotFoundError:
        return False
