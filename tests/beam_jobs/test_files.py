import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.files import UNFINISHED_SUFFIX, alone, clear, path_is_local, publish, read
from contracts.errors import InputError, OperationError


def test_what_is_published_is_read(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    assert read(path) is None
    for chunks in ([b"a", b"bc"], [b""], [b"d"]):
        publish(path, chunks)
        assert read(path) == b"".join(chunks)
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_file_keeps_its_bytes_until_the_new_ones_are_complete(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    publish(path, [b"old"])

    def chunks() -> Iterator[bytes]:
        yield b"new"
        assert read(path) == b"old"
        raise KeyError("the program failed")

    with pytest.raises(KeyError):
        publish(path, chunks())
    assert read(path) == b"old"


def test_a_killed_writer_leaves_no_half_file(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from beam_jobs.files import publish\n"
        "def chunks():\n"
        "    yield b'x' * 1_000_000\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "publish(sys.argv[1], chunks())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "file")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert read(str(tmp_path / "file")) is None


def test_a_full_disk_is_an_operation_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`/dev/full` answers every write as a full disk does."""
    opened = Path.open

    def full(path: Path, mode: str = "r") -> Any:
        return opened(Path("/dev/full"), "wb") if mode == "xb" else opened(path, mode)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OperationError, match=rf"file: cannot be written: .*{os.strerror(errno.ENOSPC)}"):
        publish(str(tmp_path / "file"), [b"x"])
    assert not list(tmp_path.iterdir())


def test_two_attempts_at_one_file_do_not_write_into_each_other_s(tmp_path: Path) -> None:
    """A runner may give a bundle to a second worker while the first one still has it."""
    path = str(tmp_path / "file")

    def slow() -> Iterator[bytes]:
        yield b"first, "
        publish(path, [b"second, all of it"])
        assert read(path) == b"second, all of it"
        yield b"all of it"

    publish(path, slow())
    assert read(path) == b"first, all of it"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_attempt_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    test_a_killed_writer_leaves_no_half_file(tmp_path)
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(UNFINISHED_SUFFIX)
    publish(str(tmp_path / "other"), [b"x"])
    assert left.exists()  # it is not the other file's
    publish(str(tmp_path / "file"), [b"y"])
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "other"]


def test_a_folder_is_cleared_of_its_files(tmp_path: Path) -> None:
    clear(str(tmp_path / "nothing"))
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x")
    clear(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_folder_is_reserved_until_it_is_given_back(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    for _ in range(2):
        with (
            alone(folder, "--out"),
            pytest.raises(InputError, match=r"^--out: a folder that no other process writes to expected, got '.*new'"),
            alone(folder, "--out", wait=False),
        ):
            raise AssertionError("two have it")
    with alone(folder, "--out", wait=False), alone("gs://bucket/folder", "--out", wait=False):
        pass


def test_another_process_waits_for_a_folder(tmp_path: Path) -> None:
    wait = f"from beam_jobs.files import alone\nwith alone({str(tmp_path)!r}, '--out'): print('mine', flush=True)"
    with alone(tmp_path, "--out"):
        other = subprocess.Popen([sys.executable, "-c", wait], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=3)
    assert other.communicate(timeout=60)[0] == "mine\n"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^--out: .* cannot be written to"), alone(tmp_path / "file" / "in", "--out"):
        pass


def test_buckets_are_not_on_this_machine() -> None:
    assert path_is_local("runs/demo")
    assert path_is_local("/runs/demo")
    assert not path_is_local("gs://bucket/demo")
