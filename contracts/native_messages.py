"""Keeps what native code writes to standard error from the terminal.

TensorFlow 2.21 writes about oneDNN, CUDA and the CPU when it is loaded, whatever TF_CPP_MIN_LOG_LEVEL is. It writes to
the file descriptor, so replacing `sys.stderr` does not stop it.
"""

import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import IO, Any


@contextmanager
def standard_error_in(file: IO[Any]) -> Iterator[int]:
    """Sends what this process writes to standard error to `file`, including what native code writes.

    Yields the descriptor of the standard error it replaces.
    """
    if sys.stderr is not None:
        sys.stderr.flush()
    before = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield before
    finally:
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)


@contextmanager
def native_messages_withheld() -> Iterator[None]:
    """Discards what is written to standard error in the block, unless an exception leaves it: then it is written."""
    with tempfile.TemporaryFile() as withheld, standard_error_in(withheld) as terminal:
        try:
            yield
        except Exception:  # an interruption is not caught: the messages did not cause it
            withheld.seek(0)
            os.write(terminal, withheld.read())
            raise


def withhold_while_importing(module: str) -> None:
    """Applies `native_messages_withheld` to the first import of a top-level module, wherever that import stands."""
    if module not in sys.modules and not any(
        isinstance(one, _Finder) and one.module == module for one in sys.meta_path
    ):
        sys.meta_path.insert(0, _Finder(module))


class _Finder(MetaPathFinder):
    """Finds one module as the other finders do, once, and wraps its execution."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec, its loader wrapped; None for other modules."""
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with native_messages_withheld():
                execute(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
