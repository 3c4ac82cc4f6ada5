"""The command lines of the trainer: what is wrong is one line, and paths are those of a job on Vertex AI as well."""

import argparse
from pathlib import Path
from typing import NoReturn

from contracts.errors import InputError


class FlagParser(argparse.ArgumentParser):
    """A command line on which a mistake is one line, as all wrong input is."""

    def error(self, message: str) -> NoReturn:
        """Raises InputError in place of printing the usage."""
        raise InputError(message)


def mounted(path: str) -> Path:
    """Where a `gs://` path is mounted in a Vertex job; other paths as they are."""
    return Path("/gcs") / path.removeprefix("gs://") if path.startswith("gs://") else Path(path)
