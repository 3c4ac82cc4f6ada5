"""The documentation: what is made from the code, and that the site needs nothing from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from docs import reference

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", "-c", "docs", ".", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_fetches_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert site / "index.html" in pages
    for page in pages:
        assert (
            re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"(?:https?:)?//[^>]*", page.read_text()) == []
        )
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", style.read_text()) == []


@pytest.mark.parametrize("program", reference.programs())
def test_every_flag_of_a_program_is_in_its_help_and_in_the_reference(program, capsys):
    parser = reference.parser_of(program)
    parser.print_help()
    options = capsys.readouterr().out.partition("\noptions:\n")[2].partition("\n\n")[0]
    flags = set(re.findall(r"^ +(--[a-z-]+)", options, re.MULTILINE))
    section = reference.commands_of(parser)
    assert f"## `{parser.prog}`" in section
    assert {flag for flag in flags if f"| `{flag}` |" not in section} == set()


def test_a_field_shows_its_type_bounds_default_and_meaning():
    class Sample(msgspec.Struct):
        """What a sample is."""

        share: Annotated[float, msgspec.Meta(gt=0, le=1, description="of a | b")] = 0.5

    assert "| `share` | number | > 0, ≤ 1 | `0.5` | of a \\| b |" in reference.struct_section(Sample)
