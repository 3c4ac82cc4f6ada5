"""Where the flex template of `beam_jobs.generate_movielens` begins: the launcher runs a file, not a module."""

import sys

from beam_jobs.generate_movielens import main

if __name__ == "__main__":
    sys.exit(main())
