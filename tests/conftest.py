"""The order of the test files, and what all of them are spared."""

import gc

# Those that start servers come first, so that the end is not spent waiting for them.
FIRST = ("tests/flows/test_flow_kills.py", "tests/flows/test_flow_terminal.py", "tests/flows/test_flow_guard.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


def pytest_collection_finish():
    """The garbage collector need not look through a million objects of torch and others again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.freeze()  # nor when the process ends, which takes two seconds
