"""Where the flex template of `beam_jobs.ingest_events` begins: the launcher runs a file, not a module."""

import sys

from beam_jobs.ingest_events import main

if __name__ == "__main__":
    sys.exit(main())
