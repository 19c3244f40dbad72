"""Order of the test files, and garbage collection during the suite."""

import atexit
import gc
import os

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


def is_one_of_several(config):
    return hasattr(config, "workerinput")  # of pytest-xdist, which takes the results and no exit status


def pytest_configure(config):
    """Let the processes of a suite end at once: taking a million objects apart takes seconds in each."""
    if is_one_of_several(config):
        atexit.register(os._exit, 0)  # the first one registered is called last


def pytest_unconfigure(config):
    if not is_one_of_several(config):
        gc.unfreeze()  # triton counts its remaining objects at exit, and complains
