"""Description of a stream of text: its shards and, before training, the amount of text in each."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3llada.artifacts import read_json, write_json
from qwen3llada.corpus.fetch.hub import HubRepository, dataset_files, resolve
from qwen3llada.corpus.fetch.local import is_local, local_files
from qwen3llada.corpus.fetch.slices import parse_split
from qwen3llada.corpus.fetch.sources import TextData
from qwen3llada.corpus.files.ordered_map import ordered_map
from qwen3llada.corpus.files.rows import file_format
from qwen3llada.corpus.text.column import AUTO, text_column
from qwen3llada.corpus.text.documents import TxtUnit, file_blocks
from qwen3llada.corpus.text.encode import unencodable
from qwen3llada.corpus.text.lanes import deal
from qwen3llada.corpus.text.same_text import text_hash
from qwen3llada.corpus.text.text_stream import CODE, HELDOUT_FILE, RUN, STREAM_FILE, local_shard, shard_size
from qwen3llada.corpus.tokens.tokenizer import identity
from qwen3llada.errors import InputError

TOKEN_BYTES = 4  # approximate bytes of text per token, to estimate whether a lane fills a run of positions
COUNTS = ("documents", "blank_documents", "heldout_documents", "text_bytes")


def list_shards(params: TextData) -> tuple[dict[str, Any], HubRepository | None]:
    """Content of `stream.json` about the shards of `params`, and their repository (None: local). Opens no shard.

    Raises: InputError if the source or a split does not exist; OSError if the hub is not reachable.
    """
    parts = parse_split(params.split)
    if not all(part.whole for part in parts):
        raise InputError(f"split={params.split!r} must name whole splits with streaming=true, which counts no rows")
    if is_local(params.name):
        if params.revision is not None:
            raise InputError(f"{params.name}: revision={params.revision!r} must be null, a local source has none")
        paths = [path for part in parts for path in local_files(params.name, part.split, params.config)]
        shards = [{"path": str(path), "bytes": path.stat().st_size} for path in paths]
        return {"repository": None, "shards": shards}, None
    repository = resolve(params.name, params.revision, "dataset")
    known = {file.path: file for file in repository.files}
    found = [known[path] for paths in dataset_files(repository, params.config, parts) for path in paths]
    shards = [{**asdict(file), "bytes": file.size} for file in found]
    return {"repository": {"name": repository.name, "commit": repository.commit}, "shards": shards}, repository


def write_shards(folder: Path, shards: dict[str, Any]) -> None:
    """Write the result of `list_shards` to `stream.json` in `folder`."""
    write_json(folder / STREAM_FILE, shards)


def write_stream(
    raw: Path, out: Path, tokenizer: Any, params: TextData, *, max_length: int, heldout: frozenset[int] = frozenset()
) -> dict[str, Any]:
    """Write what training needs to stream the shards listed in `raw` to the folder `out`. Returns counts.

    Local shards are read once, by `params.num_proc` processes, to count their text. Of a hub repository at most the
    first shard is opened, to find the text column. `heldout`: hashes of documents to leave out of training.
    `stream.json` contains hashes of the tokenizer and of the tokenizing code, because these decide the data.
    Raises: InputError if a shard cannot be read, or if there is no text column or no text.
    """
    described = read_json(raw / STREAM_FILE)
    shards: list[dict[str, Any]] = described["shards"]
    column = _text_column(described, params)
    counts: dict[str, Any] = {"shards": len(shards), "shard_bytes": sum(shard["bytes"] for shard in shards)}
    if described["repository"] is None:
        _count_text(shards, _Counter(column, params.txt_unit, heldout), params.num_proc)
        blank = [shard["path"] for shard in shards if not shard["text_bytes"]]
        if len(blank) == len(shards):
            raise InputError(f"{params.name}: no text in any of its {len(shards)} shards")
        counts |= {name: sum(shard[name] for shard in shards) for name in COUNTS} | {"blank_shards": len(blank)}
    lanes = deal([shard_size(shard) for shard in shards], least=RUN * max_length * TOKEN_BYTES)
    settings = {"text_field": column, "txt_unit": params.txt_unit, "max_length": max_length, "lanes": lanes}
    hashed = np.array(sorted(heldout), np.int64)
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / HELDOUT_FILE, hashed)
    code = hashlib.sha256()
    for name in CODE:
        code.update((Path(__file__).parents[1] / f"{name}.py").read_bytes())
    digests = identity(tokenizer) | {"code_sha256": code.hexdigest()}
    digests["heldout_sha256"] = hashlib.sha256(hashed.tobytes()).hexdigest()
    write_json(out / STREAM_FILE, described | settings | digests)
    return counts | {"lanes": len(lanes), "max_length": max_length, "text_field": column}


def _text_column(described: dict[str, Any], params: TextData) -> str | None:
    """The text column of all shards; None if all are plain text files."""
    repository, shards = described["repository"], described["shards"]
    if repository is None:
        return text_column([local_shard(None, shard) for shard in shards], params.text_field)
    if params.text_field != AUTO:
        return params.text_field
    first = next((shard for shard in shards if file_format(Path(shard["path"])) != "txt"), None)
    return None if first is None else text_column([local_shard(repository, first)], AUTO)


@dataclass(frozen=True)
class _Counter:
    """Counts the text of a shard as `TextEncoder` will see it."""

    column: str | None
    txt_unit: TxtUnit
    heldout: frozenset[int]

    def __call__(self, path: Path) -> dict[str, int]:
        found = dict.fromkeys(COUNTS, 0)
        for block in file_blocks(path, self.column, self.txt_unit):
            texts = block.decoded()
            for number, text in enumerate(texts):
                begins, ends = number > 0 or not block.continues, number < len(texts) - 1 or not block.open_end
                if begins and ends and not text.strip():
                    found["blank_documents"] += 1
                elif begins and ends and self.heldout and text_hash(text) in self.heldout:
                    found["heldout_documents"] += 1
                else:
                    found["documents"] += begins
                    try:
                        found["text_bytes"] += len(text.encode())
                    except UnicodeEncodeError:
                        raise unencodable(block, number, text) from None
        return found


def _count_text(shards: list[dict[str, Any]], counter: _Counter, processes: int) -> None:
    """Add the counts of each local shard to its entry."""
    paths = [local_shard(None, shard) for shard in shards]
    for shard, found in zip(shards, ordered_map(_count, counter, paths, processes), strict=True):
        shard.update(found)


def _count(counter: _Counter, path: Path) -> dict[str, int]:
    return counter(path)
