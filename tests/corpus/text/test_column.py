"""The text column: determined from many rows and the schema, or refused with the candidates."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen3llada.corpus.text.column import text_column
from qwen3llada.errors import InputError

STORY = "Once there was a hill, and on it stood a tree number {}."


def write(folder, rows, columnar):
    if columnar:
        pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
        return folder / "a.parquet"
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "a.jsonl"


def table(**columns):
    """60 rows. `{}` in a value becomes the row's number; lists are cycled through."""
    return [
        {name: v[i % len(v)] if isinstance(v, list) else v.replace("{}", str(i)) for name, v in columns.items()}
        for i in range(60)
    ]


@pytest.mark.parametrize("columnar", [False, True])
@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (table(label=[None, "L1", "L2"], passage=STORY), "passage"),
        (table(id="doc-{}", url="https://example.org/a/long/way/to/page-{}", story=STORY), "story"),
        (table(date=["Mon Nov 27 00:12:00 UTC 2026"], story=STORY), "story"),
        (table(source=["taken from the old library of the town"], story=STORY), "story"),  # only one value
        (table(title="The story of tree number {}", story=STORY * 9), "story"),  # several times as long
        (table(id="{}", story="山の上に木が立っていました{}番"), "story"),  # no spaces between words
        ([{"passage": None, "id": "x"}] * 40 + table(id="d{}", passage=STORY), "passage"),
        (table(passage=STORY, text="t{}"), "text"),
        (table(line="l{}"), "line"),  # the only candidate
    ],
)
def test_the_column_that_reads_like_text_is_taken(tmp_path, rows, found, columnar):
    assert text_column([write(tmp_path, rows, columnar)]) == found


@pytest.mark.parametrize("columnar", [False, True])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (table(id="d{}", text=[["One part.", "Two."]], story=STORY), "text is .*not text; set text_field .*: story"),
        (table(id="d{}", text=[None], story=STORY), "text is null in all rows looked at.*candidates: story"),
        (table(document="doc-{}", story=STORY), "document does not read like text; .*candidates: story"),
        (table(one=STORY, two=STORY), "no column is clearly the text; .*candidates: one, two"),
        (table(id="d{}", label=["yes", "no"]), "no column is clearly the text; .*candidates: id, label"),
        (table(n=[1, 2]), "no column of text; columns: n"),
    ],
)
def test_no_guess_is_made_where_nothing_is_clear(tmp_path, rows, message, columnar):
    with pytest.raises(InputError, match=message) as caught:
        text_column([write(tmp_path, rows, columnar)])
    assert "\n" not in str(caught.value)


def test_the_schema_speaks_where_all_rows_are_null(tmp_path):
    table = pa.table({"n": pa.array([None] * 5, pa.int64()), "story": [STORY.format(i) for i in range(5)]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="n is int64, not text: text_field='n' does not hold text; columns: n, story"):
        text_column([tmp_path / "a.parquet"], "n")


def test_null_in_the_first_thousands_of_rows_is_no_evidence(tmp_path, monkeypatch):
    monkeypatch.setattr("qwen3llada.corpus.files.rows.BLOCK_BYTES", 1000)  # otherwise all rows are read at once
    rows = [{"passage": None, "label": "L"}] * 3000 + [{"passage": STORY.format(i), "label": "L"} for i in range(99)]
    assert text_column([write(tmp_path, rows, False)]) == "passage"
