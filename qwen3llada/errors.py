"""The error for what a user gave: parameters, files, data. Anything else that is raised is a defect of the program."""


class InputError(ValueError):
    """Something given is unusable. The text is one line: what was given, where, and what is allowed.

    A stage prints the line and leaves with status 1. A plain `ValueError`, from a library or from our own pure
    functions, is a defect and keeps its traceback.
    """
