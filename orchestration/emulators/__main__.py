"""`python -m orchestration.emulators`: see `orchestration.emulators.servers`."""

import sys

from orchestration.emulators.servers import main

sys.exit(main())
