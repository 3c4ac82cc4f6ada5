"""Checks of a log against itself and against the policies it names, without any other truth."""
