"""Rows of local files, a block at a time: what cannot be read is a row with an error, so that none is lost in silence.

Formats: .jsonl .ndjson .json .csv .tsv .txt .parquet .arrow, each also with .gz or .zst behind it. Blocks are about
`BLOCK_BYTES` large and depend on the files alone. Nothing here can reach the network.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from qwen3llada.corpus import formats
from qwen3llada.corpus.blocks import COMPRESSION, FORMATS, Block, Row, file_format

RECORDS = {
    "jsonl": formats.read_lines,
    "ndjson": formats.read_lines,
    "json": formats.read_json,
    "csv": formats.read_csv,
    "tsv": formats.read_csv,
}


def data_files(folder: Path) -> list[Path]:
    """The data files in `folder`, at any depth, in the order of their paths. Hidden files and folders are left out.

    Raises: ValueError if there is none, or `folder` does not exist.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    found = [path for path in folder.rglob("*") if path.is_file() and file_format(path)]
    files = sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts))
    if not files:
        raise ValueError(
            f"{folder}: no data file in it; looked for {', '.join(FORMATS)} (also {', '.join(COMPRESSION)})"
        )
    return files


def read_blocks(path: Path, columns: Iterable[str] | None = None) -> Iterator[Block]:
    """The records of a file that has records (any format but .txt), in order.

    `columns` limits what is read of a columnar file. Raises: ValueError naming the file if it is damaged as a whole.
    """
    kind = file_format(path)
    try:
        if kind == "parquet":
            yield from formats.read_parquet(path, columns)
        elif kind == "arrow":
            yield from formats.read_arrow(path, columns)
        elif kind in RECORDS:
            yield from RECORDS[kind](path)
        else:
            raise ValueError(f"{path}: holds no records; formats that do: {', '.join([*RECORDS, 'parquet', 'arrow'])}")
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path}: damaged {kind} file: {' '.join(str(error).split())}") from error


def read_rows(folder: Path) -> Iterator[tuple[Path, int, Row]]:
    """File, index in the file and record, of each record under `folder`."""
    for path in data_files(folder):
        for block in read_blocks(path):
            for offset, row in enumerate(block.rows()):
                yield path, block.first + offset, row
