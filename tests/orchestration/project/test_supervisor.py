import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from contracts.errors import InputError, OperationError
from contracts.event_segments import open_segments, sealed_segments
from contracts.records import Decision, event_decoder
from orchestration.endpoint import served
from orchestration.processes import Child, wait_until
from orchestration.project import supervisor
from orchestration.project.supervisor import Keeper, Supervisor, roll
from predictor.client import Client
from predictor.messages import Instance
from tests.orchestration.project.projects import SETTINGS, make

WAIT = 120.0
linux = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks processes up in /proc")


def processes(root: Path, module: str = "") -> dict[int, list[str]]:
    """The processes whose command names the folder, without the guards of `orchestration.processes`."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if any(word.startswith(str(root)) for word in words) and module in words:
            found[int(path.parent.name)] = words
    return {pid: words for pid, words in found.items() if words[2:3] != ["orchestration.processes"]}


def logged(events: Path) -> bytes:
    """What the event log holds, in sealed segments and in those that a killed predictor left open."""
    return b"".join(path.read_bytes() for path in [*open_segments(events), *sealed_segments(events)])


def is_served(address: str) -> bool:
    try:
        return bool(served(address))
    except OperationError:
        return False


@linux
def test_what_is_killed_comes_back_and_nothing_is_left_in_the_end(tmp_path):
    folder = make(tmp_path / "shop")
    log = tmp_path / "up.log"
    command = [sys.executable, "-m", "orchestration.cli", "up", str(folder.root)]
    with log.open("wb") as output:
        up = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        assert wait_until(lambda: "Logs:" in log.read_text(), WAIT), log.read_text()
        first = log.read_text().splitlines()
        address = folder.read_up().predictor
        assert first[0].startswith(f"Predictor: {address}")
        assert first[1].startswith("Live page: http://")
        assert first[2].startswith("Serves:    uniform-")

        with Client(address) as client:
            [before] = client.predict([Instance(context={"who": "x"}, candidates=["a", "b"])])
        # An answer does not wait for the log: what a killed predictor had not written yet is lost.
        assert wait_until(lambda: before.decision_id.encode() in logged(folder.events), WAIT)
        for module in ("predictor.app", "orchestration.project.learner"):
            assert wait_until(lambda module=module: len(processes(tmp_path, module)) == 1, WAIT)
            [pid] = processes(tmp_path, module)
            os.kill(pid, signal.SIGKILL)
            assert wait_until(
                lambda module=module, pid=pid: (
                    len(processes(tmp_path, module)) == 1 and pid not in processes(tmp_path, module)
                ),
                WAIT,
            ), log.read_text()
        assert wait_until(lambda: is_served(address), WAIT)
        with Client(address) as client:
            [after] = client.predict([Instance(context={"who": "y"})])
            client.reward(before.decision_id, 1.0)
            client.reward(after.decision_id, 0.0)
        assert wait_until(lambda: {part.restarts for part in folder.read_up().parts} == {0, 1}, WAIT)
        assert "predictor was ended by SIGKILL; it starts again in 1 s" in log.read_text()
        assert "learner was ended by SIGKILL" in folder.last_problem().fact

        up.send_signal(signal.SIGINT)
        assert up.wait(60) == 0, log.read_text()
    finally:
        up.kill()
        up.wait()
    assert "Stopped" in log.read_text()
    assert processes(tmp_path) == {}
    assert not folder.is_up()
    events = [event_decoder.decode(line) for line in logged(folder.events).splitlines()]
    decided = {event.decision_id for event in events if isinstance(event, Decision)}
    assert decided == {before.decision_id, after.decision_id}
    assert len(events) == 4


def test_a_second_one_for_the_same_folder_is_refused(tmp_path):
    folder = make(tmp_path / "shop")
    with folder.alone(), pytest.raises(InputError, match="is up already"):
        Supervisor(folder).run()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("project.toml", "[windows]\nwindow_seconds = 0", r"project.toml: windows.window_seconds: Expected"),
        ("features.json", "{}", r"features.json: Object missing required field `features`"),
        ("catalogue.json", "[1]", r"entry 0 must be an object, got 1"),
    ],
)
def test_a_wrong_file_is_named_before_anything_starts(tmp_path, name, text, message):
    folder = make(tmp_path / "shop")
    (folder.root / name).write_text(text)
    with pytest.raises(InputError, match=message):
        Supervisor(folder).run()
    assert not folder.up.exists()


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        folder = make(tmp_path / "shop", f"{SETTINGS}\n[serving]\nport = {port}\n")
        with pytest.raises(InputError, match=f"port {port} cannot be used"):
            Supervisor(folder).run()


def test_pauses_double_until_a_process_runs_steadily(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_SECONDS", 0.04)
    told: list[str] = []
    keeper = Keeper("broken", ["no_such_module"], tmp_path / "log", told.append)
    try:
        deadline = time.monotonic() + WAIT
        while len(told) < 4 and time.monotonic() < deadline:
            keeper.look()
    finally:
        keeper.stop()
    assert [text.split("again in ")[1].split(" s")[0] for text in told[:4]] == ["0.01", "0.02", "0.04", "0.04"]
    assert "No module named no_such_module" in told[0]
    assert keeper.part.restarts >= 3


def test_a_log_that_is_long_is_rolled_while_the_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "MAX_LOG_BYTES", 100)
    log = tmp_path / "x.log"
    child = Child(
        "writer", [sys.executable, "-c", "import time\nprint('first' * 50, flush=True)\ntime.sleep(600)"], log
    )
    with child:
        assert wait_until(lambda: log.stat().st_size > 100, WAIT)
        roll(log)
        assert log.stat().st_size == 0
        with log.open("ab") as other:
            other.write(b"second" * 50)
        roll(log)
    assert log.with_name("x.log.1").read_text() == "second" * 50
    assert log.with_name("x.log.2").read_text().strip() == "first" * 50
    roll(log)
    assert not log.with_name("x.log.3").exists()
