"""The order of the test files: those that start servers come first, so that the end is not spent waiting for them."""

FIRST = ("tests/flows/test_flow_kills.py", "tests/flows/test_flow_terminal.py", "tests/flows/test_flow_guard.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))
