"""Runs a job that is killed (SIGKILL) at a moment that does not depend on how fast anything is.

    python -m tests.killed MOMENT COUNT JOB FLAGS…

It is killed while it writes its COUNT-th file: when half of it is there (`torn`), when all of it is, but not under its
name (`unnamed`), or just after it has its name (`named`).
"""

import os
import signal
import sys
from pathlib import Path

MOMENTS = ("torn", "unnamed", "named")


def arm(moment: str, count: int) -> None:
    """Makes `beam_jobs.files.publish`, through which all files are written, deadly."""
    fsync, rename = os.fsync, Path.rename
    begun = 0

    def deadly_fsync(descriptor: int) -> None:
        nonlocal begun
        begun += 1
        if begun == count and moment == "torn":
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    def deadly_rename(path: Path, target: Path) -> Path:
        if begun == count and moment == "unnamed":
            os.kill(os.getpid(), signal.SIGKILL)
        renamed = rename(path, target)
        if begun == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return renamed

    os.fsync = deadly_fsync
    Path.rename = deadly_rename


if __name__ == "__main__":
    import importlib

    moment, count, job, *flags = sys.argv[1:]
    main = importlib.import_module(f"beam_jobs.{job}").main
    arm(moment, int(count))
    sys.exit(main(flags))
