"""The error for unusable user input: parameters, files, data. Any other exception is a defect of the program."""


class InputError(ValueError):
    """User input is unusable. The message is one line: what was given, where, and what is allowed.

    A stage prints the line and exits with status 1. A plain `ValueError`, from a library or from our own pure
    functions, is a defect and gives a traceback.
    """
