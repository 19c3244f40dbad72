"""Blocks of records, and rows that may carry a read error."""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from qwen3llada.encodings import compression, seeming_encoding, wide_encoding
from qwen3llada.errors import InputError

FORMATS = ("jsonl", "ndjson", "json", "csv", "tsv", "txt", "parquet", "arrow")
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
BLOCK_BYTES = 1 << 20
CONVERT = "Convert it: iconv -f ENCODING -t UTF-8"
MANY_LINES = 3  # lines that are not UTF-8, from which on the whole file counts as another encoding
SAVED_STATE = "state.json"  # of a folder saved by `datasets`: lists its Arrow files
#: Format -> names, without endings, of files that describe data, a model or a project but contain no data.
BOOKKEEPING = {
    "json": {"dataset_info", "dataset_infos", "dataset_dict", "state", "source", "config", "generation_config"}
    | {"adapter_config", "preprocessor_config", "processor_config", "tokenizer", "tokenizer_config", "vocab"}
    | {"special_tokens_map", "added_tokens", "trainer_state", "model.safetensors.index", "pytorch_model.bin.index"}
    | {"package", "package-lock", "tsconfig", "datapackage", "croissant", "metadata", "manifest", "schema", "stats"}
    | {"statistics", "features"},
    "txt": {"readme", "license", "licence", "copying", "notice", "changelog", "changes", "authors", "contributors"}
    | {"contributing", "citation", "merges", "vocab", "requirements", "constraints", "robots", "version"}
    | {"cmakelists", "checksums", "md5sums", "sha1sums", "sha256sums"},
}
_REQUIREMENTS = re.compile(r"requirements[._-].*|.*[._-]requirements")


@dataclass(frozen=True, slots=True)
class Row:
    """One record. If it could not be read, `error` says why, `value` is None and `raw` is the text in the file."""

    value: Any
    error: str | None = None
    raw: str | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive records of one file: undecoded JSON lines, an Arrow batch, or decoded rows."""

    file: Path
    first: int  # index of the first record in the file
    lines: list[bytes] | None = None
    batch: pa.RecordBatch | None = None
    decoded: list[Row] | None = None

    def __len__(self) -> int:
        records: Any = self.lines if self.lines is not None else self.decoded
        return self.batch.num_rows if self.batch is not None else len(records)

    def rows(self) -> list[Row]:
        """The records, decoded."""
        if self.lines is not None:
            return [_json_row(line) for line in self.lines]
        return _batch_rows(self.batch) if self.batch is not None else self.decoded or []


def _batch_rows(batch: pa.RecordBatch) -> list[Row]:
    try:
        return [Row(value) for value in batch.to_pylist()]
    except UnicodeDecodeError:  # Arrow does not validate text
        fields = [pa.field(field.name, _as_bytes(field.type)) for field in batch.schema]
        return [Row(_as_text(value)) for value in batch.cast(pa.schema(fields)).to_pylist()]


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """The same data type with binary instead of text, at any depth."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(_as_bytes(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _as_bytes(field.type)) for field in kind])
    return kind


def _as_text(value: Any) -> Any:
    """Bytes as text. Bytes that are not UTF-8 become lone surrogates, which valid text never contains."""
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    return {key: _as_text(item) for key, item in value.items()} if isinstance(value, dict) else value


def _json_row(line: bytes) -> Row:
    try:
        return Row(json.loads(line.decode()))
    except UnicodeDecodeError as error:
        why = f"not UTF-8 text: {error.reason} at byte {error.start}; it seems to be {seeming_encoding(line)}"
        return Row(None, why, line.decode(errors="backslashreplace"))
    except json.JSONDecodeError as error:
        return Row(None, f"not JSON: {error.msg} at character {error.pos}", line.decode())
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number with thousands of digits
        return Row(None, f"not readable JSON: {error}", line.decode())


def file_format(path: Path) -> str | None:
    """The format in a file's name, without its compression; None if it is not one of `FORMATS`.

    Also None for files that are no data by their name (`is_bookkeeping`).
    """
    return None if is_bookkeeping(path) else declared_format(path)


def declared_format(path: Path) -> str | None:
    """The format in a file's name, also for bookkeeping files."""
    found = _without_compression(path).rpartition(".")
    return found[2] if found[1] and found[2] in FORMATS else None


def is_bookkeeping(path: Path) -> bool:
    """Whether a file, by its name, describes data, a model or a project: dataset_infos.json, requirements.txt."""
    stem, _, kind = _without_compression(path).rpartition(".")
    return stem in BOOKKEEPING.get(kind, ()) or (kind == "txt" and _REQUIREMENTS.fullmatch(stem) is not None)


def _without_compression(path: Path) -> str:
    name = path.name.lower()
    for suffix in COMPRESSION:
        name = name.removesuffix(suffix)
    return name


def open_stream(path: Path) -> pa.NativeFile:
    """The bytes of `path`, decompressed according to its name."""
    return pa.input_stream(str(path), compression=COMPRESSION.get(path.suffix.lower()))


def open_text(stream: pa.NativeFile) -> io.TextIOWrapper:
    """Characters of a UTF-8 stream. Invalid bytes become lone surrogates, which valid text never contains."""
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def check_encoding(path: Path) -> None:
    """Reject a text file that as a whole has another encoding than UTF-8, judged by its first `BLOCK_BYTES`.

    Single damaged lines are left to the reader. Raises: InputError naming the file and its apparent encoding.
    """
    with open_stream(path) as stream:
        head = stream.read(BLOCK_BYTES)
    check_start(path, head)
    head = head[: head.rfind(b"\n") + 1] or head  # the block may end inside a character
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if (seems := _other_encoding(path, head)) is not None:
            raise _in_encoding(path, seems) from error


def check_start(path: Path, head: bytes) -> None:
    """Reject a file whose first bytes, `head`, show that it is compressed or in UTF-16 or UTF-32.

    Its name may lack the ending of the compression, or it was compressed twice. Raises: InputError naming the file and
    what it is.
    """
    if (wide := wide_encoding(head)) is not None:
        raise _in_encoding(path, wide)
    if (found := compression(head)) is None:
        return
    suffix = next((suffix for suffix, name in COMPRESSION.items() if name == found), None)
    named = suffix is not None and path.suffix.lower() not in COMPRESSION
    mend = f"Name it {path.name}{suffix}" if named else "Unpack it"
    raise InputError(f"{path}: not text; it is compressed with {found}. {mend}")


def _in_encoding(path: Path, seems: str) -> InputError:
    return InputError(f"{path}: not UTF-8 text; it seems to be {seems}. {CONVERT}")


def _other_encoding(path: Path, head: bytes) -> str | None:
    """The apparent encoding if many lines are not UTF-8 and none is valid UTF-8 beyond ASCII; else None."""
    lines = head.split(b"}" if file_format(path) == "json" else b"\n")  # an array may be one long line
    beyond = [line for line in lines if not line.isascii()]
    broken = sum(not _is_utf8(line) for line in beyond)
    if broken < max(MANY_LINES, len(lines) // 20) or broken < len(beyond):
        return None
    return seeming_encoding(b"\n".join(beyond))


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def iter_lines(path: Path) -> Iterator[list[bytes]]:
    """Lines of a file without line ends, in lists of about `BLOCK_BYTES`, without a leading UTF-8 byte order mark."""
    with open_stream(path) as stream:
        rest = stream.read(3)
        rest = b"" if rest == b"\xef\xbb\xbf" else rest
        while data := stream.read(BLOCK_BYTES):
            head, newline, tail = data.rpartition(b"\n")
            if newline:
                yield (rest + head).split(b"\n")
                rest = tail
            else:
                rest += data
        if rest:
            yield rest.split(b"\n")
