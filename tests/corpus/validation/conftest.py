"""A fixture of the tests of the gate."""

import pytest


@pytest.fixture
def without_docs(monkeypatch):
    """Skips Great Expectations' own pages, which take a third of a test's time, in tests that ignore them."""
    monkeypatch.setattr("qwen3llada.corpus.validation.gate.write_data_docs", lambda context: None)
