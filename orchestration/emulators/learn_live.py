"""Runs `beam_jobs.learn_live` on this machine, from a subscription of the Pub/Sub emulator.

    PUBSUB_EMULATOR_HOST=HOST:PORT python -m orchestration.emulators.learn_live --events pubsub:projects/P/subscriptions/S …

The flags are those of the job. The loop starts it as a process. Messages are acknowledged as they are read, because the
job's state is in its memory: what a process that is killed had learned comes back with the record of the windows.
"""

import sys
from collections.abc import Sequence

from beam_jobs import learn_live
from orchestration.emulators.reliable_reader import ReliableReader


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job; returns the exit code."""
    with ReliableReader(acknowledge_read=True):
        return learn_live.main(argv)


if __name__ == "__main__":
    sys.exit(main())
