"""Files that derive from the code: written, or compared with what would be written."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contracts.command_line import FlagParser, run_main


def main(
    module: str, documentation: str, files: Mapping[str, Any], derived_from: str, argv: Sequence[str] | None
) -> int:
    """The command line of `beam_jobs.<module>`: writes `files` (JSON by name) into a folder, or checks them there.

    Returns the exit code: with `--check`, 1 when a file differs.
    """

    def command(argv: Sequence[str] | None) -> int:
        flags = FlagParser(prog=f"python -m beam_jobs.{module}", documentation=documentation)
        flags.add_argument("folder", type=Path)
        flags.add_argument("--check", action="store_true", help="write nothing")
        arguments = flags.parse_args(argv)
        stale = []
        for name, content in files.items():
            path = arguments.folder / name
            text = json.dumps(content, indent=2) + "\n"
            if not path.is_file() or path.read_text() != text:
                stale.append(name)
                if not arguments.check:
                    path.write_text(text)
        if stale and arguments.check:
            names = ", ".join(stale)
            sys.stderr.write(f"beam_jobs.{module}: error: {names} differ from {derived_from}: run without --check\n")
            return 1
        return 0

    return run_main(f"beam_jobs.{module}", command, argv)
