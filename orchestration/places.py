"""Where the embedded backend keeps things: all below one folder, the root.

events/, warehouse/, windows/, policies/, catalogue.json, and runs/ (what each run of a pipeline did)
"""

import os
from pathlib import Path


class Places:
    """Where things are below a root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events = root / "events"
        self.warehouse = root / "warehouse"
        self.windows = root / "windows"
        self.policies = root / "policies"
        self.runs = root / "runs"
        self.catalogue = root / "catalogue.json"


def replace_file(path: Path, data: bytes) -> None:
    """Writes `data` to `path` so that a reader finds the old content or the new, never a part."""
    hidden = path.with_name(f".{path.name}")
    with hidden.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    hidden.replace(path)
