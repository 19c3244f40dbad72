"""Download of model and data to data/raw. All sources are resolved before anything is written, in one transaction."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3llada.artifacts import new_together, write_json
from qwen3llada.corpus.builtin import source as builtin
from qwen3llada.corpus.builtin.params import BuiltinParams
from qwen3llada.corpus.fetch.copying import copy_file, describe_file, land
from qwen3llada.corpus.fetch.dividing import TextColumn, selections
from qwen3llada.corpus.fetch.hub import MODEL_FILES, HubRepository, dataset_files, fetch, model_files, resolve
from qwen3llada.corpus.fetch.local import is_local, left_out, licence_of, local_files
from qwen3llada.corpus.fetch.mixture import Ingredient, land_mixture
from qwen3llada.corpus.fetch.selection import Files, Selection, refuse_overlap
from qwen3llada.corpus.fetch.shard_list import list_shards, write_shards
from qwen3llada.corpus.fetch.slices import parse_split
from qwen3llada.corpus.fetch.sources import (
    BUILTIN,
    MIXTURE,
    ConversationData,
    DataSource,
    MixtureSource,
    ModelSource,
    TextData,
)
from qwen3llada.errors import InputError

SOURCE_FILE = "SOURCE.json"


@dataclass(frozen=True, slots=True)
class Artifact:
    """One folder of data/raw: facts about its origin, and the function that fills it."""

    origin: dict[str, Any]
    write: Callable[[Path], dict[str, Any] | None]  # returns facts known only after writing


def download(
    raw: Path, *, model: ModelSource, text: TextData, conversations: ConversationData, world: BuiltinParams
) -> dict[str, Any]:
    """Fill `raw`: model, text/{train,heldout}, conversations/{train,heldout}, and SOURCE.json, which is returned.

    The four are replaced together or not at all: after an error the earlier content of `raw` is unchanged.
    SOURCE.json records source, revision and licence of each (null = unknown), and size and SHA-256 of its files.
    Builtin and local sources do not use the network.
    Raises: InputError if a source, revision or split does not exist or is empty; OSError if the hub is not reachable.
    """
    artifacts = {  # all sources are resolved before anything is written
        "model": _model(model, world),
        "text": _data(text, world),
        "conversations": _data(conversations, world),
    }
    record: dict[str, Any] = {}
    with new_together([raw / name for name in (*artifacts, SOURCE_FILE)]) as (*folders, source_file):
        for (name, artifact), folder in zip(artifacts.items(), folders, strict=True):
            folder.mkdir()
            found = artifact.write(folder) or {}
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            described = {path.relative_to(folder).as_posix(): describe_file(path) for path in files}
            record[name] = artifact.origin | found | {"files": described}
        write_json(source_file, record)
    return record


def source_notes(entry: dict[str, Any]) -> list[str]:
    """Notes for the user about an entry of SOURCE.json: automatic choices, and what was left out."""
    notes = [
        f"left out, as by their names they hold no data: {', '.join(part['left_out'])}"
        for part in (entry, *entry.get("mixture", ()), entry.get("heldout", {}))
        if part.get("left_out")
    ]
    if (column := entry.get("text_field")) is not None:
        notes.append(f"rows are divided by column {column if isinstance(column, str) else ', '.join(column)}")
    if dropped := entry.get("asks_heldout"):
        notes.append(f"{dropped:,} conversations left out of training: a later prompt of theirs opens a held-out one")
    return list(dict.fromkeys(notes))


def fetch_model(source: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint: `source` itself, or the download of a hub repository."""
    return _model_folder(source, revision)[0]


def _model(params: ModelSource, world: BuiltinParams) -> Artifact:
    if params.source == BUILTIN:
        return Artifact(_built_in(), lambda folder: builtin.write_builtin_model(folder, world))
    folder, repository = _model_folder(params.source, params.revision)
    wanted = [path for path in sorted(folder.iterdir()) if any(path.match(pattern) for pattern in MODEL_FILES)]
    names = {path.name for path in wanted}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise InputError(f"{params.source}: no checkpoint in it; it must hold config.json and *.safetensors")

    def write(target: Path) -> None:
        for path in wanted:
            copy_file(path, target / path.name)

    return Artifact(_origin(params.source, repository), write)


def _model_folder(source: str, revision: str | None) -> tuple[Path, HubRepository | None]:
    if is_local(source):
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise InputError(f"{source}: must be the folder of a checkpoint")
        if revision is not None:
            raise InputError(f"{source}: {revision=} must be null, a local folder has none")
        return folder, None
    repository = resolve(source, revision, "model")
    return fetch(repository, model_files(repository)), repository


def _data(params: TextData | ConversationData, world: BuiltinParams) -> Artifact:
    if params.name == BUILTIN:
        return Artifact(_built_in(), lambda folder: _write_builtin(folder, params, world))
    if params.name == MIXTURE:
        return _mixture(params)
    if isinstance(params, TextData) and params.streaming:
        return _stream(params)
    train, repository = _files(params)
    origin = _data_origin(params.name, repository) | {"config": params.config, "split": params.split}
    heldout, held_out = _heldout(params)
    column = TextColumn(params, [train])
    whole, divided = selections(params, column)
    refuse_overlap(train, heldout, whole)

    def write(folder: Path) -> dict[str, Any]:
        dropped = land(train, folder / "train", folder / "heldout", divided)
        if heldout:
            land(heldout, folder / "heldout", None, whole)
        return column.facts() | ({"asks_heldout": dropped} if dropped else {})

    return Artifact(origin | held_out, write)


def _stream(params: TextData) -> Artifact:
    """The list of shards that training will read, and the held-out data."""
    shards, repository = list_shards(params)
    origin = _data_origin(params.name, repository) | {"config": params.config, "split": params.split, "streaming": True}
    heldout, held_out = _heldout(params)
    whole, _ = selections(params, TextColumn(params, []))
    _refuse_held_shards(params, [shard["path"] for shard in shards["shards"]], heldout, repository is None, whole)

    def write(folder: Path) -> None:
        write_shards(folder / "train", shards)
        land(heldout, folder / "heldout", None, whole)

    return Artifact(origin | held_out, write)


def _refuse_held_shards(
    params: TextData, shards: list[str], heldout: list[Files], local: bool, selection: Selection
) -> None:
    """Raises: InputError if a shard is also held out. Hub shards are compared by their paths in the repository."""
    if local:
        train = [Files([Path(path).expanduser() for path in shards], part) for part in parse_split(params.split)[:1]]
        refuse_overlap(train, heldout, selection)
    elif params.heldout_name in (None, params.name):
        held = [path.as_posix() for files in heldout for path in files.paths]
        if both := [path for path in shards if any(name.endswith(f"/{path}") for name in held)]:
            raise InputError(f"{params.name}: {both[0]} would be trained on and held out: the splits overlap")


def _mixture(params: TextData | ConversationData) -> Artifact:
    """Several sources, their rows interleaved."""
    found = [(_files(source), source) for source in params.mixture]
    ingredients = [Ingredient(source.name, files, source.weight) for (files, _), source in found]
    origins = [
        _data_origin(source.name, repository) | source.model_dump(include={"config", "split", "weight"})
        for (_, repository), source in found
    ]
    heldout, held_out = _heldout(params)
    column = TextColumn(params, [files for (files, _), _ in found])
    whole, divided = selections(params, column)
    refuse_overlap([files for (sources, _), _ in found for files in sources], heldout, whole)

    def write(folder: Path) -> dict[str, Any]:
        as_text = isinstance(params, TextData)
        dropped = land_mixture(ingredients, folder / "train", folder / "heldout", divided, as_text=as_text)
        if heldout:
            land(heldout, folder / "heldout", None, whole)
        return column.facts() | ({"asks_heldout": dropped} if dropped else {})

    return Artifact({"source": MIXTURE, "mixture": origins} | held_out, write)


def _heldout(params: DataSource) -> tuple[list[Files], dict[str, Any]]:
    """The files of a separate held-out source, and its facts for SOURCE.json."""
    if params.heldout_fraction:
        return [], {"heldout_fraction": params.heldout_fraction}
    own = params.heldout_name is None
    source = MixtureSource(
        name=params.name if own else str(params.heldout_name),
        config=params.config if own else None,
        revision=params.revision if own else None,
        split=params.heldout_split or "train",
    )
    files, repository = _files(source)
    return files, {"heldout": _data_origin(source.name, repository) | {"split": source.split}}


def _files(source: DataSource | MixtureSource) -> tuple[list[Files], HubRepository | None]:
    """The files of each slice of the split, downloaded if not local, and the repository."""
    name, parts = source.name, parse_split(source.split)
    if is_local(name):
        if source.revision is not None:
            raise InputError(f"{name}: revision={source.revision!r} must be null, a local source has none")
        return [Files(local_files(name, part.split, source.config), part) for part in parts], None
    repository = resolve(name, source.revision, "dataset")
    paths = dataset_files(repository, source.config, parts)
    folder = fetch(repository, sorted({path for found in paths for path in found}))
    files = [Files([folder / path for path in found], part) for found, part in zip(paths, parts, strict=True)]
    return files, repository


def _write_builtin(folder: Path, params: TextData | ConversationData, world: BuiltinParams) -> None:
    if isinstance(params, TextData):
        builtin.write_builtin_text(folder, world)
    else:
        builtin.write_builtin_conversations(folder, world)
    for split in ("train", "heldout"):
        (folder / split).mkdir()
        (folder / f"{split}.jsonl").rename(folder / split / f"{split}.jsonl")


def _built_in() -> dict[str, Any]:
    return {"source": BUILTIN, "revision": None, "licence": "Apache-2.0"}


def _origin(source: str, repository: HubRepository | None) -> dict[str, Any]:
    if repository is None:
        return {"source": source, "revision": None, "licence": licence_of(source)}
    return {"source": source, "revision": repository.commit, "licence": repository.licence}


def _data_origin(source: str, repository: HubRepository | None) -> dict[str, Any]:
    """The origin, and the files of a local folder that are not read as data."""
    ignored = left_out(source) if repository is None else []
    return _origin(source, repository) | ({"left_out": ignored} if ignored else {})
