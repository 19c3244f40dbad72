"""Every file can be read in one sitting."""

import pytest
from test_layers import MODULES, ROOT

MOST_LINES = 250
TABLES: set[str] = set()  # files that consist of one table of values


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_has_at_most_250_lines(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES or str(path.relative_to(ROOT)) in TABLES, f"{lines} lines: split it by meaning"


def test_tables_are_named_only_where_they_need_it():
    assert [name for name in TABLES if len((ROOT / name).read_text().splitlines()) <= MOST_LINES] == []
