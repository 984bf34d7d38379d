"""Optional packages: imported where they are used, with an error whose command installs what is missing.

The project is not on PyPI, so `pip install 'groundling[serve]'` finds nothing there. What works depends on how the
package was installed: from a checkout, pip takes the checkout's path; from a wheel, the packages are named one by one.
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
        module: its dotted name.
        extra: the extra that brings the package.
        package: what pip calls it, where that is not the module's first name.

    Raises:
        MissingExtraError: the package, or one that it needs, is not installed.
        ConfigError: it is installed, and cannot be imported.
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
    """The error that a package is missing, with the command that installs its extra here."""
    return MissingExtraError(package, extra, install_command(extra))


def install_command(extra: str) -> str:
    """The shell command that installs an extra into this environment."""
    if (checkout := _checkout()) is not None:
        return f"{_pip()} -e {shlex.quote(f'{checkout}[{extra}]')}"
    if (source := _installed_from()) is not None:
        return f"{_pip()} {shlex.quote(f'{source}[{extra}]')}"
    return f"{_pip()} {' '.join(map(shlex.quote, requirements(extra)))}"


def requirements(extra: str) -> list[str]:
    """What an extra needs, as pip takes it, by the metadata of the installed package.

    Raises:
        PackageNotFoundError: the package is not installed.
    """
    in_extra = re.compile(rf"""extra == ['"]{re.escape(extra)}['"]""")
    split = (text.partition(";") for text in distribution(NAME).requires or ())
    return [need.strip() for need, _, marker in split if in_extra.search(marker)]


def _checkout() -> Path | None:
    """The checkout that this code lies in: installed with `-e`, or found by PYTHONPATH."""
    root = Path(__file__).resolve().parents[3]
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return root if project.get("project", {}).get("name") == NAME else None


def _installed_from() -> Path | None:
    """The folder or wheel that pip installed from, if it is still there (PEP 610)."""
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
    """How pip is called so that it installs into the environment of this process."""
    found = shutil.which("pip")
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return "pip install"
    if not _has_pip() and shutil.which("uv"):
        return f"uv pip install --python {shlex.quote(sys.executable)}"
    return f"{shlex.quote(sys.executable)} -m pip install"


def _has_pip() -> bool:
    """Whether `python -m pip` works: uv makes environments without it."""
    try:
        return bool(distribution("pip"))
    except PackageNotFoundError:
        return False
