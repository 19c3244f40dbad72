"""What files are read as: blocks of records, and rows that say why they could not be read."""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from qwen3llada.encodings import seeming_encoding, wide_encoding
from qwen3llada.errors import InputError

FORMATS = ("jsonl", "ndjson", "json", "csv", "tsv", "txt", "parquet", "arrow")
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
BLOCK_BYTES = 1 << 20
CONVERT = "Convert it: iconv -f ENCODING -t UTF-8"
MANY_LINES = 3  # lines that are not UTF-8 before the whole file is taken to be in another encoding
SAVED_STATE = "state.json"  # of a folder that `datasets` saved: which Arrow files belong to it
#: Names, by format and without endings, of files that describe data, a model or a project and hold no data themselves.
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
    """One record. `error` says why it could not be read; then `value` is None and `raw` what stands in the file."""

    value: Any
    error: str | None = None
    raw: str | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive records of one file: undecoded lines of JSON, an Arrow batch, or rows already decoded."""

    file: Path
    first: int  # index, in the file, of the first record
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
    except UnicodeDecodeError:  # Arrow does not check what it is told is text
        fields = [pa.field(field.name, _as_bytes(field.type)) for field in batch.schema]
        return [Row(_as_text(value)) for value in batch.cast(pa.schema(fields)).to_pylist()]


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """The type of the same data with binary in place of text, at any depth."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(_as_bytes(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _as_bytes(field.type)) for field in kind])
    return kind


def _as_text(value: Any) -> Any:
    """Bytes as text; those that are not UTF-8 become lone surrogates, which no valid text holds."""
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
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        return Row(None, f"not readable JSON: {error}", line.decode())


def file_format(path: Path) -> str | None:
    """The format that a file's name declares, without its compression; None if it is not one of `FORMATS`.

    None, too, for a file that is no data by its name (`is_bookkeeping`).
    """
    return None if is_bookkeeping(path) else declared_format(path)


def declared_format(path: Path) -> str | None:
    """The format in a file's name, whatever is in it."""
    found = _without_compression(path).rpartition(".")
    return found[2] if found[1] and found[2] in FORMATS else None


def is_bookkeeping(path: Path) -> bool:
    """Whether a file describes data, a model or a project, going by its name: dataset_infos.json, requirements.txt."""
    stem, _, kind = _without_compression(path).rpartition(".")
    return stem in BOOKKEEPING.get(kind, ()) or (kind == "txt" and _REQUIREMENTS.fullmatch(stem) is not None)


def _without_compression(path: Path) -> str:
    name = path.name.lower()
    for suffix in COMPRESSION:
        name = name.removesuffix(suffix)
    return name


def open_stream(path: Path) -> pa.NativeFile:
    """The bytes of `path`, decompressed as its name says."""
    return pa.input_stream(str(path), compression=COMPRESSION.get(path.suffix.lower()))


def open_text(stream: pa.NativeFile) -> io.TextIOWrapper:
    """Characters of a UTF-8 stream. A byte that is not UTF-8 becomes a lone surrogate, which no valid text holds."""
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def check_encoding(path: Path) -> None:
    """Refuse a file of text that as a whole has another encoding than UTF-8, judged by its first `BLOCK_BYTES`.

    A line that is damaged among lines that are not is left to the reader. Raises: InputError with the file's name and
    the encoding that it seems to have.
    """
    with open_stream(path) as stream:
        head = stream.read(BLOCK_BYTES)
    seems = wide_encoding(head)
    if seems is None:
        head = head[: head.rfind(b"\n") + 1] or head  # the block may end within a character
        try:
            head.decode()
            return
        except UnicodeDecodeError:
            seems = _other_encoding(path, head)
    if seems is not None:
        raise InputError(f"{path}: not UTF-8 text; it seems to be {seems}. {CONVERT}")


def _other_encoding(path: Path, head: bytes) -> str | None:
    """The encoding of text that is not UTF-8 on many lines, and UTF-8 beyond ASCII on none; else None."""
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
    """Lines of a file without their ends, in lists of about `BLOCK_BYTES`, without a leading UTF-8 byte order mark."""
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
