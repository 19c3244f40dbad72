"""One thread for the tests of a folder whose conftest.py imports the fixture."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """One thread, so that sums have the same order in all processes and forks need no thread of their parent."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
