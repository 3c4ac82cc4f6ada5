"""Where the flex template of `beam_jobs.export_trajectories` begins: the launcher runs a file, not a module."""

import sys

from beam_jobs.export_trajectories import main

if __name__ == "__main__":
    sys.exit(main())
