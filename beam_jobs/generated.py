"""Files that are derived from the code: written, or checked to be what would be written."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beam_jobs.options import FlagParser
from contracts.errors import InputError


def main(module: str, doc: str, files: Mapping[str, Any], derived_from: str, argv: Sequence[str] | None) -> int:
    """The command line of `beam_jobs.<module>`: writes or checks `files` (JSON, by name) in a folder."""
    flags = FlagParser(
        prog=f"python -m beam_jobs.{module}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("folder", type=Path)
    flags.add_argument("--check", action="store_true", help="write nothing")
    try:
        arguments = flags.parse_args(argv)
    except InputError as error:
        sys.stderr.write(f"{module}: error: {error}\n")
        return 2
    stale = []
    for name, content in files.items():
        path = arguments.folder / name
        text = json.dumps(content, indent=2) + "\n"
        if not path.is_file() or path.read_text() != text:
            stale.append(name)
            if not arguments.check:
                path.write_text(text)
    if stale and arguments.check:
        sys.stderr.write(f"{module}: error: {', '.join(stale)} differ from {derived_from}: run without --check\n")
        return 1
    return 0
