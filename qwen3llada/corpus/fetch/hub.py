"""Models and data sets on the Hugging Face hub: resolve to a commit, download, verify against the hub's hashes.

The hub's libraries cache partial downloads and resume them. Only this module uses the network.
"""

import glob
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from qwen3llada.corpus.fetch.copying import COPY_BYTES
from qwen3llada.corpus.fetch.slices import Slice
from qwen3llada.corpus.files.rows import is_bookkeeping
from qwen3llada.errors import InputError

#: Files of a model repository to download: configuration, safetensors, tokenizer, templates, licence.
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*", "README.md")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository. Large files have `sha256`, all others `blob` (git's SHA-1 of the content)."""

    path: str
    size: int | None
    sha256: str | None
    blob: str | None


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository at a commit."""

    name: str
    kind: Literal["model", "dataset"]
    commit: str
    licence: str | None
    files: tuple[HubFile, ...]


def resolve(name: str, revision: str | None, kind: Literal["model", "dataset"]) -> HubRepository:
    """The repository at the commit that `revision` (None = main) currently names.

    Raises: InputError for an unknown name or revision, or without access; OSError if the hub is not reachable.
    """
    from huggingface_hub import HfApi

    with _plain_errors(name, revision):
        info: Any = HfApi().repo_info(name, revision=revision, repo_type=kind, files_metadata=True)
    files = [
        HubFile(file.rfilename, file.size, file.lfs.sha256 if file.lfs else None, None if file.lfs else file.blob_id)
        for file in info.siblings
    ]
    licence = info.card_data.get("license") if info.card_data else None
    return HubRepository(name, kind, info.sha, licence if isinstance(licence, str) else None, tuple(files))


def model_files(repository: HubRepository) -> list[str]:
    """Paths of a model repository's files to download: those matching `MODEL_FILES` at its top level."""
    paths = [file.path for file in repository.files if "/" not in file.path]
    return [path for path in paths if any(fnmatch(path, pattern) for pattern in MODEL_FILES)]


def fetch(repository: HubRepository, paths: list[str]) -> Path:
    """Download files or take them from the cache. Returns their folder.

    Raises: InputError if a file differs from what the hub states; OSError if the hub is not reachable.
    """
    from huggingface_hub import snapshot_download

    patterns = [glob.escape(path) for path in paths]
    with _plain_errors(repository.name, repository.commit):
        folder = Path(
            snapshot_download(
                repository.name, repo_type=repository.kind, revision=repository.commit, allow_patterns=patterns
            )
        )
    for file in repository.files:
        if file.path in paths:
            _check(folder / file.path, file, repository.name)
    return folder


def dataset_files(repository: HubRepository, config: str | None, parts: list[Slice]) -> list[list[str]]:
    """Paths in the repository of the data files of each slice, found by the hub's own conventions.

    Raises: InputError if the configuration or a split does not exist.
    """
    from datasets import load_dataset_builder

    with _plain_errors(repository.name, repository.commit):
        builder = load_dataset_builder(repository.name, config, revision=repository.commit)
    by_split = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
    found = []
    for part in parts:
        if part.split not in by_split:
            raise InputError(f"{repository.name}: no split={part.split!r}; it has {', '.join(by_split) or 'none'}")
        paths = [url.partition(f"@{repository.commit}/")[2] for url in by_split[part.split]]
        found.append([path for path in paths if not is_bookkeeping(Path(path))])
    return found


def _check(path: Path, file: HubFile, name: str) -> None:
    size = path.stat().st_size
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as stream:
        while data := stream.read(COPY_BYTES):
            sha256.update(data)
            blob.update(data)
    expected = ((file.size, size), (file.sha256, sha256.hexdigest()), (file.blob, blob.hexdigest()))
    if any(wanted is not None and wanted != got for wanted, got in expected):
        raise InputError(
            f"{name}: {file.path} as downloaded ({size} bytes) is not what the hub has; remove {path.resolve()}"
        )


@contextmanager
def _plain_errors(name: str, revision: str | None) -> Iterator[None]:
    """Turn errors of the hub's libraries into one line that names the request."""
    from huggingface_hub import errors

    what = name if revision is None else f"{name} at {revision}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise InputError(f"{what}: access must be asked for on its page, then log in with `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{name}: no {revision=} on the hub") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"{what}: neither a local path nor a public repository of the hub") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise OSError(f"{what}: the hub cannot be reached: {str(error).splitlines()[0]}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2"):
            raise OSError(f"{what}: the hub cannot be reached: {error}") from error
        if type(error).__module__.partition(".")[0] in ("datasets",) or isinstance(
            error, FileNotFoundError | ValueError
        ):
            raise InputError(f"{what}: {' '.join(str(error).split())[:300]}") from error
        raise
