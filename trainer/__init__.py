"""Trains bandit policies from training windows, and estimates how good they are."""

import contextlib
import warnings

import contracts  # noqa: F401  Sets how TensorFlow is loaded, before any module of this package can import it.

# TF-Agents imports Gym for environments that this package does not use, and Gym prints that it is no longer maintained.
with contextlib.suppress(ImportError):
    from gym_notices.notices import notices

    notices.clear()

# TensorFlow compiles a copy of TF-Agents' code, in which TF-Agents compares with `is not ()`.
warnings.filterwarnings("ignore", '"is not" with', SyntaxWarning)
