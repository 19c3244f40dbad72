"""A file that is not UTF-8 gives one line with its name and its apparent encoding."""

import bz2
import gzip
import io
import json
import lzma
import zipfile

import pyarrow as pa
import pytest

from qwen3llada.corpus.files.reading import read_blocks
from qwen3llada.corpus.files.rows import _json_row
from qwen3llada.corpus.text.documents import txt_blocks
from qwen3llada.encodings import seeming_encoding
from qwen3llada.errors import InputError

ROWS = [{"question": f"Wer fährt im Jahr {i} über die Brücke?", "answer": "Österreich"} for i in range(30)]
FORMS = {
    "a.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    "a.json": json.dumps(ROWS, ensure_ascii=False),
    "a.csv": "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in ROWS),
    "a.txt": "\n".join(row["question"] for row in ROWS),
}
ENCODINGS = {
    "latin-1": "ISO-8859-1",
    "cp1252": "ISO-8859-1",  # same bytes in this text
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16-LE",
    "utf-16-be": "UTF-16-BE",
    "utf-32": "UTF-32",
}


def read(path):
    return [*txt_blocks(path, "line")] if path.suffix == ".txt" else [*read_blocks(path)]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_file_and_its_encoding_are_named(tmp_path, name, encoding):
    (tmp_path / name).write_bytes(FORMS[name].encode(encoding))
    with pytest.raises(InputError, match=rf"{name}: not UTF-8 text.*it seems to be {ENCODINGS[encoding]}") as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FORMS)
def test_ascii_as_utf_16_without_a_mark_is_valid_utf_8_and_still_refused(tmp_path, name):
    (tmp_path / name).write_bytes(FORMS[name].encode("ascii", "ignore").decode().encode("utf-16-le"))
    with pytest.raises(InputError, match=f"{name}: not UTF-8 text; it seems to be UTF-16-LE"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", FORMS)
def test_utf_8_is_read_with_and_without_its_mark(tmp_path, name):
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / name).write_bytes(FORMS[name].encode(encoding))
        assert sum(len(block.decoded()) if name == "a.txt" else len(block) for block in read(tmp_path / name)) >= 30


def zipped(data):
    with zipfile.ZipFile(made := io.BytesIO(), "w") as archive:
        archive.writestr("a", data)
    return made.getvalue()


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    ("pack", "said"),
    [
        (gzip.compress, "gzip. Name it {}.gz"),
        (lambda data: pa.compress(data, "zstd", asbytes=True), "zstd. Name it {}.zst"),
        (bz2.compress, "bzip2. Unpack it"),
        (lzma.compress, "xz. Unpack it"),
        (zipped, "zip. Unpack it"),
    ],
)
def test_compressed_data_without_the_name_is_named(tmp_path, name, pack, said):
    (tmp_path / name).write_bytes(pack(FORMS[name].encode()))
    with pytest.raises(InputError, match=f"{name}: not text; it is compressed with {said.format(name)}$"):
        read(tmp_path / name)


def test_data_compressed_twice_are_to_be_unpacked(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(gzip.compress(FORMS["a.jsonl"].encode())))
    with pytest.raises(InputError, match=r"compressed with gzip\. Unpack it$"):
        read(tmp_path / "a.jsonl.gz")


def test_a_damaged_line_is_not_another_encoding(tmp_path):
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]
    lines[3] = lines[3].replace("ü".encode(), b"\xfc")
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    rows = [row for block in read(tmp_path / "a.jsonl") for row in block.rows()]
    assert [i for i, row in enumerate(rows) if row.error] == [3]
    assert "not UTF-8 text" in rows[3].error


def test_words_for_other_bytes():
    assert seeming_encoding("“Straße”, sagte er".encode("cp1252")) == "Windows-1252"
    assert seeming_encoding("Привет, мир".encode("cp1251")).startswith("an encoding with many bytes above 127")
    assert seeming_encoding("viele Wörter, Sätze, Bücher".encode() + b"\xff") == "damaged UTF-8"


def test_the_error_of_one_damaged_row_names_an_encoding():
    row = _json_row('{"text": "über"}'.encode("latin-1"))
    assert row.value is None
    assert row.error is not None
    assert row.error.endswith("it seems to be ISO-8859-1 (latin-1)")
