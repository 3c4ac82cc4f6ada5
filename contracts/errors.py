"""The two ways in which a command can end badly without a bug: wrong input, and an operation that failed.

`contracts.command_line.run_main` turns each into one line on stderr and an exit code of its own. Every other exception
keeps its traceback, because it is a bug.
"""


class InputError(ValueError):
    """The input cannot be used. The message is one line: which field or file, what is wanted, what was given."""

    exit_code = 2


class OperationError(RuntimeError):
    """The input is right, but the operation failed: a process crashed, a service did not answer, a disk is full.

    Trying again may succeed. The message is one line: what was attempted, and what went wrong.
    """

    exit_code = 3
