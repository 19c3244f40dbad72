"""The description of a stream of text: which shards it has, written before anything of them is read."""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwen3llada.artifacts import read_json, write_json
from qwen3llada.corpus.hub import HubRepository, dataset_files, resolve
from qwen3llada.corpus.locate import is_local, local_files
from qwen3llada.corpus.sources import TextData
from qwen3llada.corpus.splits import parse_split
from qwen3llada.corpus.stream import CODE, STREAM_FILE
from qwen3llada.corpus.tokenizer import identity
from qwen3llada.errors import InputError


def list_shards(params: TextData) -> tuple[dict[str, Any], HubRepository | None]:
    """What `stream.json` says of the shards of `params`, and their repository (None: local). No shard is opened.

    Raises: ValueError if the source or a split does not exist; OSError if the hub is not there.
    """
    parts = parse_split(params.split)
    if not all(part.whole for part in parts):
        raise InputError(f"split={params.split!r} must name whole splits with streaming=true, which counts no rows")
    if is_local(params.name):
        if params.config is not None or params.revision is not None:
            raise InputError(f"{params.name}: config and revision must be null, a local source has none")
        paths = [path for part in parts for path in local_files(params.name, part.split)]
        shards = [{"path": str(path), "bytes": path.stat().st_size} for path in paths]
        return {"repository": None, "shards": shards}, None
    repository = resolve(params.name, params.revision, "dataset")
    known = {file.path: file for file in repository.files}
    found = [known[path] for paths in dataset_files(repository, params.config, parts) for path in paths]
    shards = [{**asdict(file), "bytes": file.size} for file in found]
    return {"repository": {"name": repository.name, "commit": repository.commit}, "shards": shards}, repository


def write_shards(folder: Path, shards: dict[str, Any]) -> None:
    """Write what `list_shards` found to `stream.json` in `folder`."""
    write_json(folder / STREAM_FILE, shards)


def write_stream(raw: Path, out: Path, tokenizer: Any, params: TextData, *, max_length: int) -> dict[str, Any]:
    """Write to the folder `out` what training needs to stream the shards listed in `raw`; counts of it.

    It holds the hashes of the tokenizer and of the code that makes tokens: if they change, so does the data.
    """
    described = read_json(raw / STREAM_FILE)
    settings = {"text_field": params.text_field, "txt_unit": params.txt_unit, "max_length": max_length}
    code = hashlib.sha256()
    for name in CODE:
        code.update((Path(__file__).parent / f"{name}.py").read_bytes())
    hashes = identity(tokenizer) | {"code_sha256": code.hexdigest()}
    write_json(out / STREAM_FILE, described | settings | hashes)
    size = sum(shard["bytes"] for shard in described["shards"])
    return {"shards": len(described["shards"]), "shard_bytes": size, "max_length": max_length}
