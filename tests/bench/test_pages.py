"""Tables of results in pages."""

from pathlib import Path

import pytest

from bench.pages import write_table

PAGE = "# Page\n\n<!-- one: begin -->\n\nold\n\n<!-- one: end -->\n\n<!-- two: begin -->\n\nkept\n\n<!-- two: end -->\n"


def test_one_table_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    for _ in range(2):
        write_table(page, "one", "| new |\n\n")
        assert page.read_text() == PAGE.replace("old", "| new |")


@pytest.mark.parametrize("text", ["# Page\n", "<!-- one: begin -->\n"])
def test_a_page_without_the_marks_is_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="must have <!-- one: begin --> and <!-- one: end -->"):
        write_table(page, "one", "new")
    assert page.read_text() == text
