"""The one exception that a person's wrong input ends in."""


class InputError(ValueError):
    """What a person gave cannot be used. The message is one line: which field or file, what is wrong, what was given.

    Every `main()` prints it as `<program>: error: <message>` and exits with 2. Nothing else is turned into that line,
    so a bug keeps its traceback.
    """
