"""Rows of local files in blocks. A record that cannot be read becomes a row with an error, so that none is lost
silently.

Formats: .jsonl .ndjson .json .csv .tsv .txt .parquet .arrow, optionally followed by .gz or .zst. Blocks have about
`BLOCK_BYTES` and depend only on the files. This module never accesses the network.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from qwen3llada.artifacts import read_json
from qwen3llada.corpus.files import formats
from qwen3llada.corpus.files.rows import COMPRESSION, FORMATS, SAVED_STATE, Block, check_encoding, file_format
from qwen3llada.errors import InputError

SPLITS = ("train", "heldout")  # the two folders of each corpus
RECORDS = {
    "jsonl": formats.read_lines,
    "ndjson": formats.read_lines,
    "json": formats.read_json,
    "csv": formats.read_csv,
    "tsv": formats.read_csv,
}


def data_files(folder: Path) -> list[Path]:
    """The data files in `folder`, at any depth, sorted by path. Links are followed.

    Skipped: hidden files, files that are no data by their name (`is_bookkeeping`) and, in a folder saved by `datasets`,
    its later cache files.
    Raises: InputError if there is no data file, or no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    files = sorted(find_data_files(folder))
    if not files:
        raise InputError(
            f"{folder}: no data file in it; looked for {', '.join(FORMATS)} (also {', '.join(COMPRESSION)})"
        )
    return files


def find_data_files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files of `data_files`, unsorted. `above`: the folders on the path to this one."""
    above = (*above, folder.resolve())
    state = folder / SAVED_STATE
    saved = [file["filename"] for file in read_json(state).get("_data_files", [])] if state.is_file() else None
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if path.resolve() not in above:  # skips links back to a parent
                yield from find_data_files(path, above)
        elif file_format(path) and (saved is None or path.name in saved):
            yield path


def read_blocks(path: Path, columns: Iterable[str] | None = None) -> Iterator[Block]:
    """The records of a file that has records (any format but .txt), in order.

    `columns` restricts what is read of a columnar file. Raises: InputError naming the file if it is damaged as a whole.
    """
    kind = file_format(path)
    try:
        if kind == "parquet":
            yield from formats.read_parquet(path, columns)
        elif kind == "arrow":
            yield from formats.read_arrow(path, columns)
        elif kind in RECORDS:
            check_encoding(path)
            yield from RECORDS[kind](path)
        else:
            raise InputError(f"{path}: holds no records; formats that do: {', '.join([*RECORDS, 'parquet', 'arrow'])}")
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"{path}: damaged {kind} file: {' '.join(str(error).split())}") from error
