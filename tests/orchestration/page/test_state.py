"""The document: what the page's script reads of it is there."""

import re
from datetime import UTC, datetime
from pathlib import Path

import msgspec

import orchestration.page
from orchestration.page import state
from orchestration.page.monitor import Monitor
from tests.orchestration.page.roots import make

STATIC = Path(orchestration.page.__file__).with_name("static")


def test_the_document_is_what_was_made(tmp_path):
    monitor = Monitor(make(tmp_path / "run").root)
    monitor.follow()
    made = monitor.state([], datetime(2026, 1, 1, tzinfo=UTC))
    assert msgspec.json.decode(msgspec.json.encode(made), type=state.State) == made


def test_every_section_that_the_script_reads_is_a_field():
    script = (STATIC / "page.js").read_text() + (STATIC / "viewer.js").read_text()
    read = set(re.findall(r"\bstate\.(\w+)", script)) | set(re.findall(r"\blatest\.(\w+)", script))
    assert read - {"error"} <= set(state.State.__struct_fields__)
    assert set(re.findall(r"\bserving\.(\w+)", script)) <= set(state.Serving.__struct_fields__)
    assert set(re.findall(r"\bpoint\.(\w+)", script)) <= set(state.Point.__struct_fields__)
    assert set(re.findall(r"\bdecision\.(\w+)", script)) <= set(state.Streamed.__struct_fields__) | {"user_id"}
