"""Benchmarks. `make bench` runs them all, `make bench ONLY=<name>` one."""

import trainer  # noqa: F401 (first of all: it says how TensorFlow is to be loaded, whichever benchmark does that first)
