"""A model, its card and its export for other engines, uploaded to the Hugging Face hub."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen3llada.artifacts import read_marker
from qwen3llada.errors import InputError
from qwen3llada.modeling.loading import check_is_ours
from qwen3llada.training.model_card import CARD, parts, renewed

NAME = re.compile(r"[\w.-]+/[\w.-]+")
EXPORTED = "sdar"  # the folder of the export in the repository


def push(
    repo: str,
    folder: Path,
    card: str,
    *,
    export: Path | None = None,
    private: bool = True,
    replace_card: bool = False,
    message: str = "",
) -> str:
    """Upload the model in `folder`, its `card` as README.md and, below `sdar/`, the folder of an export, in one commit.

    The repository is made, private unless told, where there is none. Only files that this project wrote (by the marker
    in the folder) are uploaded. A card that is on the hub already stays, with its renewable parts from `card`, unless
    `replace_card`. Returns the commit's address.

    Raises: InputError for a name that is none, a folder that holds no model, a repository that may not be written to;
    OSError if the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if not NAME.fullmatch(repo):
        raise InputError(f"{repo=} must be OWNER/NAME")
    check_is_ours(folder)
    files = {name: folder / name for name in _written(folder)}
    if export is not None:
        files |= {f"{EXPORTED}/{name}": export / name for name in _written(export)}
    api = HfApi()
    with _plain_errors(repo), tempfile.TemporaryDirectory() as temporary:
        api.create_repo(repo, private=private, exist_ok=True)
        theirs = None if replace_card else _card_on_hub(api, repo, Path(temporary))
        text = card if theirs is None else renewed(theirs, parts(card))
        files[CARD] = Path(temporary) / "new.md"
        files[CARD].write_text(text, encoding="utf-8")
        operations = [CommitOperationAdd(name, str(path)) for name, path in sorted(files.items())]
        commit = api.create_commit(repo, operations, commit_message=message or "Upload the model")
        return str(commit.commit_url)


def _card_on_hub(api: Any, repo: str, temporary: Path) -> str | None:
    """The text of the repository's README.md, which people may have edited there; None if it has none."""
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(api.hf_hub_download(repo, CARD, cache_dir=temporary / "cache")).read_text(encoding="utf-8")
    except EntryNotFoundError:
        return None


def _written(folder: Path) -> list[str]:
    """The names of the files that this project wrote in a folder. Raises InputError where it wrote none."""
    names = read_marker(folder)
    if names is None:
        raise InputError(f"{folder}: was not written by this project (no marker), so nothing of it is uploaded")
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise InputError(f"{folder}: {missing[0]} is missing; write the folder again")
    return sorted(names)


@contextmanager
def _plain_errors(repo: str) -> Iterator[None]:
    """Errors of the hub's library as one line that says what was asked for."""
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise InputError(f"{repo}: not logged in to the hub; run hf auth login") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403, 404):
            raise InputError(f"{repo}: may not be written to ({status}); log in with hf auth login") from error
        raise OSError(f"{repo}: the hub refused: {str(error).splitlines()[0]}") from error
    except errors.OfflineModeIsEnabled as error:
        raise OSError(f"{repo}: the hub cannot be reached: HF_HUB_OFFLINE is set") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2"):
            raise OSError(f"{repo}: the hub cannot be reached: {error}") from error
        raise
