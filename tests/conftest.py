"""Order of the test files, and garbage collection during the suite."""

import gc

gc.disable()  # until everything is imported: imports leave no garbage

# Files that take long by themselves run first, so that the suite does not end waiting for them.
FIRST = (
    *("tests/flows/test_flow_kills.py", "tests/flows/test_flow_guard.py"),
    "tests/test_triton_interpreter.py",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


def pytest_collection_finish():
    """Exempt a million objects of torch and other packages from repeated garbage collection."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()  # triton counts its remaining objects at exit, and complains
