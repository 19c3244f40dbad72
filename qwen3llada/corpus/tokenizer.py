"""The tokenizer of a model folder."""

import hashlib
from pathlib import Path
from typing import Any

from qwen3llada.errors import InputError


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer in `folder`. Raises: ValueError if there is none, or none of the fast kind."""
    from transformers import AutoTokenizer

    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; it must hold a tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # Transformers and tokenizers raise anything for files that they cannot use
        raise InputError(f"{folder}: no tokenizer that can be loaded: {' '.join(str(error).split())[:200]}") from error
    if not tokenizer.is_fast:
        raise InputError(f"{folder}: its tokenizer has no fast implementation (tokenizer.json), which is needed here")
    return tokenizer


def fingerprint(tokenizer: Any) -> str:
    """SHA-256 of what decides the token ids of a text: vocabulary, merges, added tokens, chat template."""
    parts = [tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
