"""The documentation as a site: `sphinx-build -W -b html docs build/site` (extra `docs`).

The pages are the Markdown files of this folder, which also read well on their own. Sphinx builds
them because it, MyST and Furo are kept (mkdocs 1.x and its Material theme are not any more, and
their successors are previews), and because it ends with an error at a broken link. The pages below
`reference/` are written here from the code and never kept.
"""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

project = "nml-orch"
author = "The maintainers of nml-orch"
version = release = version_of("nml-orch")

extensions = ["myst_parser", "sphinx_click"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]
templates_path: list[str] = []

smartquotes = False

html_theme = "furo"
html_title = f"nml-orch {version}"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Write the reference before the pages are read."""
    import reference

    reference.write(HERE / "reference")
    app.connect("source-read", _leave_out_of_contents)


def _leave_out_of_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Reports' own verdicts are pages that the page of results links to, and no list names."""
    if page.startswith("results/") and page != "results/README":
        source[0] = f"---\norphan: true\n---\n{source[0]}"
