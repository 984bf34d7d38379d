"""What other systems lack is not needed to import the package."""

import subprocess
import sys

import pytest

IMPORT_ALL = """
import importlib, pkgutil, sys
for name in ("fcntl", "grp", "pwd", "resource", "termios", "tty"):
    sys.modules[name] = None
import groundling
modules = [found.name for found in pkgutil.walk_packages(groundling.__path__, "groundling.")]
assert len(modules) > 200
for name in modules:
    if not name.endswith("__main__"):
        importlib.import_module(name)
"""


@pytest.mark.slow
def test_every_module_imports_without_the_unix_modules():
    """Windows has none of them."""
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
