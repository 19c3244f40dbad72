"""Files that hold more than their format has room for are refused, not read in part."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen3llada.corpus.files.reading import read_blocks
from qwen3llada.errors import InputError

ROWS = [{"text": f"text {number}"} for number in range(3)]


def rows_of(path):
    return [row for block in read_blocks(path) for row in block.rows()]


@pytest.mark.parametrize("items", [[], ROWS], ids=["empty", "three"])
@pytest.mark.parametrize("after", ["", " \n", "\n[]", "\n" + json.dumps(ROWS), " extra"])
def test_what_follows_an_array_is_an_error(tmp_path, items, after):
    path = tmp_path / "two.json"
    path.write_text(json.dumps(items) + after)
    *read, last = [*rows_of(path), None] if not after.strip() else rows_of(path)
    assert [row.value for row in read] == items
    if after.strip():
        assert last.error == "not JSON from here on: a file is one array, and this follows it"
        assert last.raw == after.strip()


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "arrow"])
def test_columns_of_one_name_are_refused(tmp_path, kind):
    path = tmp_path / f"twice.{kind}"
    table = pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["text", "other", "text"])
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    else:
        separator = "," if kind == "csv" else "\t"
        path.write_text(separator.join(table.column_names) + "\n" + separator.join("abc") + "\n")
    with pytest.raises(InputError, match=f"twice.{kind}: several columns 'text'; each column must have its own name"):
        rows_of(path)
