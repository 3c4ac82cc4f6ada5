"""Where the flex template of `beam_jobs.replay_dead_letters` begins: the launcher runs a file, not a module."""

import sys

from beam_jobs.replay_dead_letters import main

if __name__ == "__main__":
    sys.exit(main())
