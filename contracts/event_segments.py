"""The embedded event log: a folder of append-only segments of JSON lines, one event per line.

A writer appends to `<name>.jsonl.open`, holds an exclusive lock on the file, and seals it by renaming it to
`<name>.jsonl`. A sealed segment never changes: it is the unit of ingestion, and reading it twice gives the same rows.
When a writer dies before it seals its segment, the lock is free: `seal_abandoned` then seals the segment, whose last
line may be torn. Names sort by the time at which segments were opened.
"""

import fcntl
import re
from datetime import UTC, datetime
from pathlib import Path

SEALED_SUFFIX = ".jsonl"
OPEN_SUFFIX = ".jsonl.open"
_NAME = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)-[A-Za-z0-9_.-]+")


def segment_name(opened_at: datetime, writer: str) -> str:
    """`20261122T130508.123456Z-predictor-4711-000001`: the time it was opened, and its writer's unique name."""
    return f"{compact_time(opened_at)}-{writer}"


def is_segment(name: str) -> bool:
    """Whether a file of that name is a segment; readers ignore other files."""
    try:
        opened_at(Path(name))
    except ValueError:
        return False
    return True


def opened_at(segment: Path) -> datetime:
    """When the segment was opened, from its name. Raises ValueError for a name that is not a segment's."""
    match = _NAME.match(segment.name)
    if not match:
        raise ValueError(f"not an event segment: {segment}")
    return parse_compact_time(match[1])


def stem(path: str) -> str:
    """The name of a segment without its folder and ending, as tables and notes name it."""
    return path.rpartition("/")[2].removesuffix(OPEN_SUFFIX).removesuffix(SEALED_SUFFIX)


def sealed_segments(folder: Path) -> list[Path]:
    """Sealed segments, oldest first; none when the folder is not there yet."""
    return sorted(path for path in folder.glob(f"*{SEALED_SUFFIX}") if is_segment(path.name))


def open_segments(folder: Path) -> list[Path]:
    """Segments still being written, or abandoned."""
    return sorted(path for path in folder.glob(f"*{OPEN_SUFFIX}") if is_segment(path.name))


def foreign_files(folder: Path) -> list[str]:
    """Names of files with a segment's ending that are not segments."""
    endings = (SEALED_SUFFIX, OPEN_SUFFIX)
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(endings) and not is_segment(path.name))


def seal(segment: Path) -> Path:
    """Renames an open segment to its sealed name, atomically, and returns that."""
    sealed = segment.with_name(segment.name.removesuffix(OPEN_SUFFIX) + SEALED_SUFFIX)
    return segment.rename(sealed)


def seal_abandoned(folder: Path) -> list[Path]:
    """Seals the open segments whose writer is gone (their lock is free)."""
    sealed = []
    for segment in open_segments(folder):
        try:
            with segment.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if segment.exists():  # not sealed by its writer between listing and locking
                    sealed.append(seal(segment))
        except (BlockingIOError, FileNotFoundError):
            continue  # its writer lives, or sealed it this moment
    return sealed


def compact_time(moment: datetime) -> str:
    """`20261122T130508.123456Z`: sorts by time, safe in file names."""
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def parse_compact_time(text: str) -> datetime:
    """The inverse of `compact_time`. Raises ValueError."""
    return datetime.strptime(text, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC)
