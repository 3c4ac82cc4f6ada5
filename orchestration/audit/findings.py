"""What a check finds in a window, and the level that all checks share.

A finding has a kind:

    contradiction  no viewer can cause it: the log disagrees with itself or with the policies it names
    break          rewards stopped meaning what they meant: a corrupted feed, or a new taste
    warning        worth a look; it holds nothing
"""

from typing import Literal

import msgspec

# Of false alarms per window, for each check that can hold the loop. All of them together raise fewer than one in 1,000
# windows.
LEVEL = 1e-5
# A check compares a window with the accepted ones before it. With fewer than this it finds nothing.
MIN_REFERENCE_WINDOWS = 2
# Windows that a window is compared with: the accepted ones before it, at most so many.
REFERENCE_WINDOWS = 10

Kind = Literal["contradiction", "break", "warning"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found in a window."""

    check: str
    kind: Kind
    alarm: bool
    statistic: float
    threshold: float
    fact: str  # figures in words
    meaning: str  # what it most likely means
    began: int = 0  # how many windows before this one it began
