"""The order of the test files, and what all of them are spared."""

import gc

gc.disable()  # until all is imported, which leaves no garbage

# Those that start servers come first, so that the end is not spent waiting for them.
FIRST = ("tests/flows/test_flow_kills.py", "tests/flows/test_flow_terminal.py", "tests/flows/test_flow_guard.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


def pytest_collection_finish():
    """The garbage collector need not look through a million objects of torch and others again and again."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()  # triton counts what is left of it when the process ends, and complains
