"""Every file can be read in one sitting."""

from test_layers import MODULES, ROOT

MOST_LINES = 250
TABLES: set[str] = set()  # files that consist of one table of values


def test_a_file_has_at_most_250_lines():
    for path in MODULES:
        lines, name = len(path.read_text(encoding="utf-8").splitlines()), str(path.relative_to(ROOT))
        assert lines <= MOST_LINES or name in TABLES, f"{name}: {lines} lines: split it by meaning"


def test_tables_are_named_only_where_they_need_it():
    assert [name for name in TABLES if len((ROOT / name).read_text().splitlines()) <= MOST_LINES] == []
