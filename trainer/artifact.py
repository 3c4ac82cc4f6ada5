"""Adds a policy to the policy store, whole or not at all. `contracts.policies` lists the parts of a policy."""

import errno
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from contracts.errors import InputError, OperationError
from contracts.policies import CARD_NAME, PolicyCard, decode_card, encode_json

# The errors with which Cloud Storage FUSE refuses to rename a folder with files; Vertex AI mounts buckets through it.
NO_RENAMED_FOLDERS = {errno.EMFILE, errno.ENOTSUP, errno.ENOSYS}
_WRONG_FOLDER = (FileExistsError, NotADirectoryError, PermissionError)


def read_card(policies: Path, version: str) -> PolicyCard | None:
    """The card of a policy in the store; None if the store has no such policy. Raises InputError for a broken card."""
    path = policies / version / CARD_NAME
    return decode_card(path.read_bytes(), str(path)) if path.is_file() else None


def write(policies: Path, card: PolicyCard, write_parts: Callable[[Path], None]) -> None:
    """Adds a policy to the store: all of it or nothing.

    `write_parts` fills a folder in the store whose name starts with a dot, so that no reader takes it for a policy. The
    card comes last, then the folder gets its name. An existing policy of that version is kept. Where folders can't be
    renamed (a mounted bucket), the files are copied, the card last: a folder without a card is no policy. What killed
    trainings of this version left behind is removed.

    Raises:
      InputError: the store's path is no folder or must not be written to, or a folder that is no policy has the
        version's name.
      OperationError: writing failed, for example because the disk is full.
    """
    # A new name each time: in a restarted container the process has the same number.
    temporary = policies / f".{card.version}.{uuid.uuid4().hex}"
    with writing(policies):
        try:
            temporary.mkdir(parents=True)
        except _WRONG_FOLDER as error:
            raise InputError(f"policies: cannot write to {policies}: {error.strerror}") from None
        try:
            write_parts(temporary)
            (temporary / CARD_NAME).write_bytes(encode_json(card))
            _publish(temporary, policies / card.version)
        except Exception:
            # A missing folder: another training of the same inputs finished first and removed it as a leftover.
            if temporary.is_dir() or read_card(policies, card.version) is None:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    for leftover in policies.glob(f".{card.version}.*"):
        shutil.rmtree(leftover, ignore_errors=True)


def copy(policy: Path, folder: Path) -> None:
    """Copies a policy's parts into `folder`, the card last. Copying again gives the same. Raises OperationError."""
    with writing(folder):
        _copy(policy, folder)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns a failure to read or write files inside the block into an OperationError that names `folder`.

    TensorFlow, which writes its files itself, has its own exceptions for it.
    """
    try:
        yield
    except OSError as error:
        raise OperationError(f"cannot write to {folder}: {error.strerror or error}") from None
    except Exception as error:
        tensorflow = sys.modules.get("tensorflow")  # an exception of TensorFlow's exists only where it is loaded
        if tensorflow is None or not isinstance(error, tensorflow.errors.OpError):
            raise
        raise OperationError(f"cannot write to {folder}: {str(error).splitlines()[0]}") from None


def _publish(temporary: Path, target: Path) -> None:
    """Gives the folder its name; keeps a policy that has that name already."""
    try:
        temporary.rename(target)
    except OSError as error:
        if (target / CARD_NAME).is_file():
            return  # another training of the same inputs was first, and made the same policy
        if error.errno in NO_RENAMED_FOLDERS:
            _copy(temporary, target)
        elif target.is_dir():
            raise InputError(f"{target}: is in the way and has no {CARD_NAME}; remove it") from None
        else:
            raise


def _copy(policy: Path, folder: Path) -> None:
    parts = [path.name for path in policy.iterdir() if path.name != CARD_NAME]
    folder.mkdir(parents=True, exist_ok=True)
    for name in parts:
        source = policy / name
        if source.is_dir():
            shutil.copytree(source, folder / name, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, folder / name)
    shutil.copyfile(policy / CARD_NAME, folder / CARD_NAME)
