import subprocess
import sys
from pathlib import Path

import numpy as np

from bench.measure import megabytes

ROOT = Path(__file__).parents[2]
CHILD = "from bench.measure import megabytes; print(megabytes('VmHWM'))"


def test_a_peak_is_of_this_process_and_not_of_the_one_that_started_it() -> None:
    ballast = np.ones(50_000_000)  # 400 MB; a bare interpreter takes about 15
    assert megabytes("VmRSS") > 400
    assert megabytes("VmHWM") > 400
    done = subprocess.run([sys.executable, "-c", CHILD], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 1 < float(done.stdout) < 200
    assert ballast[-1] == 1
