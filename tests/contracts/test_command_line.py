"""The flag parser, flags derived from structs, the reading of times, and the exit codes."""

import argparse
import sys
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from contracts.command_line import (
    FlagParser,
    add_flags,
    build,
    flag_name,
    from_flags,
    owned,
    parse_time,
    run_main,
    say,
    show_status,
    time_flag,
)
from contracts.errors import InputError, OperationError


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    wait_seconds: Annotated[float, Meta(gt=0, description="how long to wait, 100% of the time")]
    kind: Annotated[Literal["a", "b"], Meta(description="which kind")] = "a"
    count: Annotated[int, Meta(ge=1, description="how many", extra={"default": "as many as fit"})] = 3


def parsed(*flags: str) -> argparse.Namespace:
    parser = FlagParser(prog="test", documentation="What it does.\n\n    a command")
    add_flags(parser, Settings)
    return parser.parse_args(flags)


def test_flags_come_from_the_fields() -> None:
    assert from_flags(parsed("--wait-seconds", "2"), Settings) == Settings(wait_seconds=2.0)
    given = from_flags(parsed("--wait-seconds=2", "--kind=b", "--count=4"), Settings)
    assert given == Settings(wait_seconds=2.0, kind="b", count=4)


def test_what_was_not_given_is_as_before() -> None:
    before = Settings(wait_seconds=1.0, kind="b", count=7)
    assert from_flags(parsed("--wait-seconds", "2"), Settings, before) == Settings(wait_seconds=2.0, kind="b", count=7)


def test_help_has_descriptions_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "how long to wait, 100% of the time" in text
    assert "how many (default: as many as fit)" in text
    assert text.index("What it does.") < text.index("how long to wait") < text.index("a command")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--wait-sec", "2"], "the following arguments are required: --wait-seconds"),
        ([], "the following arguments are required: --wait-seconds"),
        (["--wait-seconds", "0"], "--wait-seconds: Expected `float` > 0.0, got '0'"),
        (["--wait-seconds", "nan"], "--wait-seconds: must be finite, got 'nan'|--wait-seconds: Expected"),
        (["--wait-seconds", "inf"], "--wait-seconds: must be finite, got 'inf'"),
        (["--wait-seconds", "x"], "--wait-seconds: Expected `float`, got 'x'"),
        (["--wait-seconds", "1", "--kind", "c"], "invalid choice: 'c'"),
    ],
)
def test_a_wrong_flag_is_named_with_its_value(flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_flags(parsed(*flags), Settings)


def test_build_names_fields_as_it_is_asked_to() -> None:
    with pytest.raises(InputError, match=r"^dev: shared.count: Expected `int` >= 1, got 0$"):
        build(Settings, {"wait_seconds": 1, "count": 0}, lambda field: f"dev: shared.{field}")
    with pytest.raises(InputError, match="unknown field"):
        build(Settings, {"wait_seconds": 1, "kount": 0}, flag_name)


def test_times_carry_a_zone() -> None:
    assert parse_time("2026-01-01T01:00:00+01:00", "--start") == datetime(2026, 1, 1, tzinfo=UTC)
    for text in ("2026-01-01T00:00:00", "soon", "0001-01-01T00:00:00+23:00"):
        with pytest.raises(InputError, match=r"^--start: a time .*, got "):
            parse_time(text, "--start")
        with pytest.raises(argparse.ArgumentTypeError):
            time_flag(text)


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (InputError("--flag: wanted, got"), 2, "a.program: error: --flag: wanted, got\n"),
        (OperationError("the child died"), 3, "a.program: failed: the child died\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_each_bad_end_has_its_exit_code(
    raised: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(_: object) -> int:
        raise raised

    assert run_main("a.program", command, []) == code
    assert capsys.readouterr().err == line


def test_a_bug_keeps_its_traceback() -> None:
    def command(_: object) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_main("a.program", command, [])
    assert run_main("a.program", lambda _: None, []) == 0
    assert run_main("a.program", lambda _: 7, []) == 7


def test_a_field_that_is_left_out_takes_the_flag_of_the_program() -> None:
    parser = FlagParser(prog="test")
    add_flags(parser, Settings, leave_out=("kind",))
    parser.add_argument("--sort", dest="kind")
    given = from_flags(parser.parse_args(["--wait-seconds", "2", "--sort", "b"]), Settings)
    assert given == Settings(wait_seconds=2.0, kind="b")
    with pytest.raises(InputError, match="unrecognized arguments: --kind b"):
        parser.parse_args(["--wait-seconds", "2", "--kind", "b"])


def test_a_line_is_printed_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    say("a line")
    assert capfd.readouterr().out == "a line\n"


def test_a_struct_that_passes_a_value_on_has_the_owners_bounds() -> None:
    class Outer(msgspec.Struct, frozen=True, kw_only=True):
        wait_seconds: Annotated[float, owned(Settings, "wait_seconds")] = 1.0

    with pytest.raises(InputError, match=r"^--wait-seconds: Expected `float` > 0.0, got '0'$"):
        build(Outer, {"wait_seconds": "0"}, flag_name)


def test_a_status_is_replaced_in_a_terminal_and_absent_from_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show_status("half of it")
    say("done")
    assert capsys.readouterr().out == "done\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "8")
    show_status("half of it")
    say("done")
    assert capsys.readouterr().out == "\r\x1b[2Khalf of\r\x1b[2Kdone\n"
