"""Where the embedded backend keeps its files: all below one folder, the root.

events/, warehouse/, windows/, policies/, live/ (provisional sums and live versions), catalogue.json,
features.json (the feature spec, if there is one), audit/ (what the audit of each window found), and runs/ (what each run
of a pipeline did)

Files are replaced whole, or grow by whole lines, so that a process that is killed leaves nothing half-written.
"""

import os
from pathlib import Path


class Places:
    """The paths below a root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events = root / "events"
        self.warehouse = root / "warehouse"
        self.windows = root / "windows"
        self.policies = root / "policies"
        self.live = root / "live"
        self.runs = root / "runs"
        self.catalogue = root / "catalogue.json"
        self.features = root / "features.json"
        self.audit = root / "audit"


def replace_file(path: Path, data: bytes) -> None:
    """Writes `data` to `path` so that a reader finds either the old content or all of the new."""
    hidden = path.with_name(f".{path.name}")
    with hidden.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    hidden.replace(path)


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file to which lines are appended; none when there is no file.

    A last line without its end is left out: the process died while it wrote it.
    """
    if not path.is_file():
        return []
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1].splitlines()


def append_line(path: Path, line: bytes) -> None:
    """Appends `line` and its end to `path`; first cuts off a last line that has no end."""
    with path.open("ab") as file:
        if file.tell():
            data = path.read_bytes()
            file.truncate(data.rfind(b"\n") + 1)
        file.write(line + b"\n")
