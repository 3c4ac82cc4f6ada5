"""The data every part shares, and no behaviour beyond reading, writing and checking it."""

import os

from contracts import native_messages

# TensorFlow reads these when it is first imported. Every program imports this package first, and `contracts.trajectories`
# imports TensorFlow, so they are set here.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # TF-Agents 0.18 needs Keras 2
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # errors reach Python as exceptions
native_messages.withhold_while_importing("tensorflow")
