"""How Sphinx builds these pages: `sphinx-build -W docs docs/_build`."""

from importlib.metadata import version as installed_version
from pathlib import Path

import sphinx.directives.code
from docutils.nodes import Node, Text, literal_block
from sphinx.application import Sphinx

project = "Groundling"
copyright = "The Groundling founders"
release = version = installed_version("groundling")

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_title = "Groundling"
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
html_static_path = ["_static"]
html_css_files = ["wide.css"]


class LiteralInclude(sphinx.directives.code.LiteralInclude):
    """`literalinclude` whose `:diff:` names files, not the paths of the machine that built the page."""

    def run(self) -> list[Node]:
        found = super().run()
        if "diff" in self.options:
            for block in (block for node in found for block in node.findall(literal_block)):
                old, new, rest = block.astext().split("\n", 2)
                names = [f"{line[:4]}{Path(line[4:].strip()).name}" for line in (old, new)]
                block.rawsource = "\n".join([*names, rest])
                block.clear()
            block += Text(block.rawsource)
        return found


def setup(app: Sphinx) -> None:
    app.add_directive("literalinclude", LiteralInclude, override=True)
