"""How Sphinx builds these pages: `sphinx-build -W docs docs/_build`."""

from importlib.metadata import version as installed_version

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
