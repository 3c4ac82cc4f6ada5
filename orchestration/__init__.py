"""Puts the parts together: the loop on one machine, pipelines, roll-out, triggers, reports."""

import trainer  # noqa: F401 (first of all: it sets how TensorFlow is loaded, before any module imports that)
