"""What is missing is named with a command that installs it: from a checkout, from where it came, or package by package.

The project is not on PyPI: `pip install 'groundling[serve]'` finds nothing there.
"""

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from groundling.errors import ConfigError, MissingExtraError
from groundling.system import optional
from groundling.tools.doctor import EXTRAS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = [path for path in (ROOT / "src").rglob("*.py") if path.name != "optional.py"]


class Installed:
    """An installed package's metadata, as pip leaves it."""

    def __init__(self, direct_url: dict | None) -> None:
        self.direct_url = direct_url
        self.requires = importlib.metadata.distribution("groundling").requires

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.direct_url is None else json.dumps(self.direct_url)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Lets the code lie elsewhere than in its checkout, installed in some way."""

    def arrange(direct_url):
        monkeypatch.setattr(optional, "__file__", str(tmp_path / "a" / "b" / "groundling" / "system" / "optional.py"))
        monkeypatch.setattr(optional, "distribution", lambda name: Installed(direct_url))

    return arrange


def what_pip_gets(extra: str) -> list[str]:
    words = shlex.split(optional.install_command(extra))
    return words[words.index("install") + 1 :]


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_from_a_checkout_pip_gets_its_path(extra):
    editable, place = what_pip_gets(extra)
    assert editable == "-e"
    assert place == f"{ROOT}[{extra}]"


def test_where_it_came_from_a_folder_or_a_wheel_that_is_still_there_pip_gets_that(installed, tmp_path):
    source = tmp_path / "with a blank"
    source.mkdir()
    (source / "pyproject.toml").write_text("", encoding="utf-8")
    installed({"url": source.as_uri(), "dir_info": {}})
    assert what_pip_gets("plot") == [f"{source}[plot]"]
    wheel = tmp_path / "groundling-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"")
    installed({"url": wheel.as_uri(), "archive_info": {}})
    assert what_pip_gets("plot") == [f"{wheel}[plot]"]


@pytest.mark.parametrize(
    "direct_url",
    [
        None,
        {"url": "file:///no/such/folder", "dir_info": {}},
        {"url": "https://example.org/groundling.whl", "archive_info": {}},
    ],
    ids=["an index", "a folder that is gone", "an address"],
)
@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_else_the_packages_are_named_one_by_one(extra, direct_url, installed):
    installed(direct_url)
    if extra == "dev":  # names the other extras, and is of no use outside a checkout
        return
    named = {(needed.name.lower(), str(needed.specifier)) for needed in map(Requirement, what_pip_gets(extra))}
    wanted = map(Requirement, PROJECT["optional-dependencies"][extra])
    assert named == {(needed.name.lower(), str(needed.specifier)) for needed in wanted}


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["align", "plot", "serve", "text"])
def test_pip_takes_the_command_as_it_stands(extra, installed):
    """Without an index: all of it is here, as the development environment has it."""
    installed(None)
    command = optional.install_command(extra).replace("pip install", "-m pip install")
    words = [word for word in shlex.split(command) if word not in (sys.executable, "-m", "pip", "install")]
    ran = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--disable-pip-version-check", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("Requirement already satisfied") >= len(words)


def test_pip_is_the_one_of_this_environment(monkeypatch, tmp_path):
    monkeypatch.setattr(optional.shutil, "which", lambda name: str(Path(sys.executable).with_name(name)))
    assert optional.install_command("plot").startswith("pip install ")
    monkeypatch.setattr(optional.shutil, "which", lambda name: f"/elsewhere/{name}")
    assert optional.install_command("plot").startswith(f"{shlex.quote(sys.executable)} -m pip install ")
    monkeypatch.setattr(optional, "_has_pip", lambda: False)
    assert optional.install_command("plot").startswith("uv pip install --python ")


def test_every_extra_named_in_the_code_brings_the_package_it_is_named_for():
    """`optional_import("tiktoken", "text")`: pyproject.toml has tiktoken under text."""
    call = re.compile(r'(?:optional_import|missing_extra)\(\s*"([\w.]+)", "(\w+)"(?:, "([\w.-]+)")?\)')
    found = {
        (package or module.partition(".")[0], extra)
        for path in SOURCES
        for module, extra, package in call.findall(path.read_text(encoding="utf-8"))
    }
    assert len(found) >= 10
    for package, extra in found:
        brought = [Requirement(line).name for line in PROJECT["optional-dependencies"][extra]]
        same = {name.lower().replace("_", "-") for name in brought}
        # What scikit-learn itself needs comes with it.
        assert package.lower().replace("_", "-") in same | {"scipy"}, (package, extra)


def test_doctor_knows_every_extra_of_users():
    assert set(EXTRAS) == set(PROJECT["optional-dependencies"]) - {"dev", "docs"}


def test_no_message_and_no_page_sends_anybody_to_pypi_for_it():
    """A name with an extra and no path in front of it is looked for on PyPI, which has none."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    pages += [*(ROOT / "examples").glob("*.py"), *(ROOT / "notebooks").glob("*"), *SOURCES]
    for page in pages:
        if page.is_file():
            assert not re.search(r"install +['\"]?groundling\b", page.read_text(encoding="utf-8")), page


def test_a_missing_package_is_named_and_one_that_is_broken_is_not_called_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(MissingExtraError, match=r"'tiktoken' is not installed; install the extra 'text': ") as caught:
        optional.optional_import("tiktoken", "text")
    assert caught.value.command == optional.install_command("text")
    (tmp_path / "needs_one_more.py").write_text("import not_to_be_found_anywhere", encoding="utf-8")
    (tmp_path / "broken_inside.py").write_text("from os import no_such_thing", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match="'not_to_be_found_anywhere' is not installed"):
        optional.optional_import("needs_one_more", "text")
    with pytest.raises(ConfigError, match=r"cannot be imported \(.*\); install it again: .*--force-reinstall"):
        optional.optional_import("broken_inside", "text")


def test_the_locks_pin_what_the_environments_need():
    """Each package with a hash, but for PyTorch; the smaller environment has the same versions as the larger one."""
    pins = {}
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text("utf-8").replace("\\\n", " ")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert all("--hash=sha256:" in line for line in lines)
        pins[name] = {line.split()[0] for line in lines}
    assert pins["requirements.lock"] <= pins["requirements-dev.lock"]
    names = {pin.partition("==")[0] for pin in pins["requirements-dev.lock"]}
    assert not [name for name in names if name.startswith(("torch", "nvidia", "triton", "cuda"))]
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(need for name in extras if name != "track" for need in extras[name])]
    assert {Requirement(need).name.lower() for need in wanted} - {"torch", "groundling"} <= names
    assert {"hatchling", "editables"} <= names
