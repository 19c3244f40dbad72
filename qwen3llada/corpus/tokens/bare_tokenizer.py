"""The tokenizer of a model folder without Transformers, for counting tokens."""

import copy
from pathlib import Path
from typing import Any

from qwen3llada.artifacts import read_json
from qwen3llada.corpus.conversations.prompts import control_tokens
from qwen3llada.corpus.tokens.tokenizer import load_tokenizer
from qwen3llada.errors import InputError


def load_backend(folder: str | Path) -> tuple[Any, set[str]]:
    """The tokenizer in `folder` as an object of the tokenizers library, and its control tokens.

    Same tokenizer as `load_tokenizer`. With a tokenizer.json it avoids importing Transformers, which takes seconds.
    Raises: InputError as `load_tokenizer`.
    """
    file, settings = Path(folder) / "tokenizer.json", Path(folder) / "tokenizer_config.json"
    if not file.is_file() or not settings.is_file():
        tokenizer = load_tokenizer(folder)
        return copy.deepcopy(tokenizer.backend_tokenizer), set(control_tokens(tokenizer))
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises only bare Exception
        raise InputError(f"{file}: no tokenizer that can be loaded: {' '.join(str(error).split())[:200]}") from error
    named = [value for key, value in read_json(settings).items() if key.endswith("_token")]
    named += [value for key, value in read_json(settings).items() if key.endswith("_special_tokens") and value]
    texts = {text for value in named for text in _contents(value)}
    return backend, texts | {t.content for t in backend.get_added_tokens_decoder().values() if t.special}


def _contents(value: Any) -> list[str]:
    """Texts of the tokens in a tokenizer setting: a text, an object with one, or a list of these."""
    if isinstance(value, list):
        return [text for item in value for text in _contents(item)]
    found = value.get("content") if isinstance(value, dict) else value
    return [found] if isinstance(found, str) and found else []
