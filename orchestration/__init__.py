"""Puts the parts together: the loop on one machine, pipelines, roll-out, triggers, reports."""

import trainer  # noqa: F401 (first of all: it says how TensorFlow is to be loaded, whoever imports that first)
