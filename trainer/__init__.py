"""Trains bandit policies from training windows and says how good they are."""

import contextlib
import os

# Read once, when TensorFlow is first imported: so set here, before any module of this package can import it.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # TF-Agents 0.18 speaks Keras 2
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # warnings and errors, not which CPU instructions there are

# TF-Agents imports Gym for environments that nothing here uses, and Gym prints that it is no longer maintained.
with contextlib.suppress(ImportError):
    from gym_notices.notices import notices

    notices.clear()
