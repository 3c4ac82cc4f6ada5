"""How Sphinx builds the documentation from the repository's Markdown: `make docs`.

The source folder is the repository, so a link between two files works in the repository and in the site alike.
"""

import re
import shutil
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import reference  # noqa: E402

project = "Bandit recommender"
copyright = "The authors. Apache-2.0"
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/evidence/*.md",
    "docs/runbook/*.md",
    "bench/README.md",
    "infra/README.md",
    "templates/README.md",
]
exclude_patterns = [".*", "runs", "site", "build", "dist", "tests", "requirements"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = project
html_copy_source = False
html_show_sphinx = False

# The pages, by caption, in the order of the site's menu. Sphinx warns of a page that is not in it.
MENU = {
    "Concepts": ["docs/concepts"],
    "How to": [
        "docs/own-items",
        "docs/running",
        "docs/other-data",
        "docs/catalogue",
        "docs/changing-context",
        "docs/live-page",
        "docs/serving",
        "docs/personalizer",
        "docs/guard",
        "docs/live",
        "docs/probation",
        "docs/erasure",
        "docs/runners",
        "docs/emulators",
        "docs/pipelines",
        "infra/README",
        "templates/README",
    ],
    "Runbook": ["docs/runbook", *(f"docs/runbook/{path.stem}" for path in sorted(ROOT.glob("docs/runbook/*.md")))],
    "Evidence": ["docs/evidence/estimates", "docs/evidence/gate"],
    "Reference": [
        "docs/commands",
        "docs/records",
        "docs/tables",
        "docs/requests",
        "docs/metrics",
        "docs/permissions",
        "docs/modules",
    ],
    "The project": ["ARCHITECTURE", "CONTRIBUTING", "bench/README"],
}
_MARKER = re.compile(r"^<!-- reference: (\w+) -->$", re.MULTILINE)


def setup(app: Sphinx) -> None:
    """Connects the two things that the site has beyond the files: its menu, and the reference made from the code."""
    app.connect("source-read", _complete)
    app.connect("build-finished", _name_start_page)


def _complete(app: Sphinx, name: str, source: list[str]) -> None:
    source[0] = _MARKER.sub(lambda marker: _section(marker[1]), source[0])
    if name == root_doc:
        source[0] += "".join(
            f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"
            for caption, pages in MENU.items()
        )


def _section(name: str) -> str:
    if name not in reference.SECTIONS:
        raise ExtensionError(f"reference: one of {', '.join(reference.SECTIONS)}, got {name!r}")
    return reference.SECTIONS[name]()


def _name_start_page(app: Sphinx, error: Exception | None) -> None:
    """Lets a browser find the start page under the name that it looks for."""
    if error is None:
        shutil.copyfile(app.outdir / f"{root_doc}.html", app.outdir / "index.html")
