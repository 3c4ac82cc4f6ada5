import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from contracts.errors import InputError, OperationError
from contracts.policies import (
    CARD_NAME,
    CHECKPOINT_NAME,
    LINEAR_NAME,
    SAVED_MODEL_NAME,
    Exploration,
    PolicyCard,
    encode_json,
)
from trainer import artifact


def card(version="v1", num_actions=1):
    return PolicyCard(
        version=version,
        parent=None,
        algorithm="lin_ucb",
        hyperparameters={},
        observation_dim=1,
        num_actions=num_actions,
        catalogue=[],
        trained_on=[],
        exploration=Exploration(),
    )


def test_a_policy_is_in_the_store_wholly_or_not_at_all(tmp_path):
    def half(folder):
        (folder / LINEAR_NAME).write_bytes(b"half")
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        artifact.write(tmp_path, card(), half)
    assert list(tmp_path.iterdir()) == []
    assert artifact.read_card(tmp_path, "v1") is None

    def all_of_it(folder):
        assert folder.name.startswith(".") and not (folder / CARD_NAME).exists()
        whole(folder)

    artifact.write(tmp_path, card(), all_of_it)
    assert artifact.read_card(tmp_path, "v1") == card()
    artifact.write(tmp_path, card(num_actions=2), all_of_it)  # it is there already: kept
    assert artifact.read_card(tmp_path, "v1") == card()
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


def whole(folder):
    (folder / LINEAR_NAME).write_bytes(b"whole")
    (folder / CHECKPOINT_NAME).mkdir()
    (folder / CHECKPOINT_NAME / "statistics.npz").write_bytes(b"sums")


KILLED = """if True:
    import os, signal, sys
    from pathlib import Path
    from contracts.policies import decode_card
    from trainer import artifact

    def half(folder):
        (folder / "linear.npz").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    artifact.write(Path(sys.argv[1]), decode_card(sys.stdin.buffer.read(), "card"), half)
"""


def test_what_a_killed_training_left_is_no_policy_and_is_removed(tmp_path, monkeypatch):
    left = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdin=subprocess.PIPE)
    left.communicate(encode_json(card()))
    assert left.returncode == -signal.SIGKILL
    (half,) = tmp_path.iterdir()
    assert half.name.startswith(".v1.") and artifact.read_card(tmp_path, "v1") is None
    monkeypatch.setattr("os.getpid", lambda: left.pid)  # as in a container that is started again
    artifact.write(tmp_path, card(), whole)
    assert artifact.read_card(tmp_path, "v1") == card()
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


def test_two_trainings_of_the_same_inputs_make_one_policy(tmp_path):
    """The one that is done first takes the other's folder for a leftover."""

    def slow(folder):
        whole(folder)
        artifact.write(tmp_path, card(), whole)
        (folder / LINEAR_NAME).write_bytes(b"whole")  # the folder is gone

    artifact.write(tmp_path, card(), slow)
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]
    assert (tmp_path / "v1" / LINEAR_NAME).read_bytes() == b"whole"


def test_a_store_that_cannot_be_written_to_is_said_to_be(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"policies: cannot write to .*file: Not a directory"):
        artifact.write(tmp_path / "file", card(), whole)


def test_what_is_in_the_way_is_not_touched(tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"in the way and has no policy\.json"):
        artifact.write(tmp_path, card(), lambda folder: None)
    assert (tmp_path / "v1" / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


def test_on_a_mounted_bucket_whose_folders_cannot_be_renamed_the_card_comes_last(tmp_path, monkeypatch):
    rename = Path.rename

    def of_files_alone(path, target):
        if path.is_dir():  # what Cloud Storage FUSE does
            raise OSError(errno.EMFILE, "Too many open files")
        return rename(path, target)

    def parts(folder):
        (folder / SAVED_MODEL_NAME).mkdir()
        (folder / SAVED_MODEL_NAME / "saved_model.pb").write_bytes(b"graph")
        (folder / LINEAR_NAME).write_bytes(b"whole")

    monkeypatch.setattr(Path, "rename", of_files_alone)
    copyfile = shutil.copyfile

    def killed_before_the_card(source, target, **named):
        if Path(source).name == CARD_NAME:
            raise KeyboardInterrupt
        return copyfile(source, target, **named)

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(shutil, "copyfile", killed_before_the_card)
        artifact.write(tmp_path, card(), parts)
    assert artifact.read_card(tmp_path, "v1") is None  # no policy yet, whatever is there of it
    for _ in range(2):
        artifact.write(tmp_path, card(), parts)
        assert artifact.read_card(tmp_path, "v1") == card()
        assert (tmp_path / "v1" / SAVED_MODEL_NAME / "saved_model.pb").read_bytes() == b"graph"
        assert (tmp_path / "v1" / LINEAR_NAME).read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


def test_a_full_disk_is_a_failed_operation_and_leaves_nothing(tmp_path):
    def parts(folder):
        (folder / LINEAR_NAME).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OperationError, match=r"cannot write to .*: No space left on device"):
        artifact.write(tmp_path, card(), parts)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_of_tensorflow_is_one_too(tmp_path):
    import tensorflow as tf

    def parts(folder):
        tf.io.write_file(str(folder / "missing" / "\0"), "x")

    with pytest.raises(OperationError, match=r"cannot write to ") as error:
        artifact.write(tmp_path, card(), parts)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
