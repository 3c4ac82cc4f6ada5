"""Where the flex template of `beam_jobs.learn_live` begins: the launcher runs a file, not a module."""

import sys

from beam_jobs.learn_live import main

if __name__ == "__main__":
    sys.exit(main())
