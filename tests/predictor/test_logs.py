import errno
from pathlib import Path

import pytest

from contracts import event_segments
from contracts.errors import InputError, OperationError
from predictor.logs import Logs
from predictor.settings import parse


def settings(folder, *flags):
    return parse(["--policy", "p", "--events", str(folder), *flags], {}, None)[0]


def test_shadows_are_written_apart_and_closing_seals_both(tmp_path):
    logs = Logs(settings(tmp_path / "events"))
    logs.events.append(b"served\n", 1)
    logs.shadows.append(b"shadow\n", 1)
    logs.close()
    for folder, line in ((tmp_path / "events", b"served\n"), (tmp_path / "events" / "shadow", b"shadow\n")):
        (segment,) = event_segments.sealed_segments(folder)
        assert segment.read_bytes() == line


def test_closing_reports_what_was_dropped(tmp_path, caplog):
    logs = Logs(settings(tmp_path / "events", "--buffer-bytes", "5"))
    assert not logs.events.append(b"too long\n", 1)
    logs.close()
    assert "the event log dropped 1 of 1 events" in caplog.text


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, OperationError), (errno.EACCES, InputError)])
def test_a_full_disk_is_a_failed_operation_and_a_forbidden_folder_is_wrong_input(tmp_path, monkeypatch, number, kind):
    def fail(*_, **__):
        raise OSError(number, "no")

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(kind, match=r"^events: cannot make the folder .*events: no$"):
        Logs(settings(tmp_path / "events"))


def test_a_wrong_topic_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^--topic: must be projects/PROJECT/topics/TOPIC, got 'events'$"):
        Logs(settings(tmp_path / "events", "--topic", "events"))
