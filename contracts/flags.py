"""The command line of every program here."""

import argparse
from typing import Any, NoReturn

from contracts.errors import InputError


class FlagParser(argparse.ArgumentParser):
    """A command line on which a mistake is one line, as all wrong input is, and no flag can be shortened."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**({"allow_abbrev": False} | settings))

    def error(self, message: str) -> NoReturn:
        """Raises InputError in place of printing the usage."""
        raise InputError(f"{message} (--help lists what there is)")
