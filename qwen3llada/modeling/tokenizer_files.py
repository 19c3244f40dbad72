"""A tokenizer from its files, as it will be saved again."""

from pathlib import Path
from typing import Any

from qwen3llada.errors import InputError

OWN_CODE = (
    "its tokenizer needs code that lies in the folder (auto_map in tokenizer_config.json), which is never run; save it"
    " as a tokenizer.json of a class in Transformers"
)
# Arguments of loading that Transformers keeps, and would write into tokenizer_config.json.
LEFTOVERS = ("is_local", "local_files_only", "trust_remote_code")


def tokenizer_of(folder: str | Path) -> Any:
    """The tokenizer in `folder`, fast or slow. Code in the folder is never run, and nothing is asked.

    Raises: InputError if there is no tokenizer, if it is broken or without a vocabulary, or if it needs its own code.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # Transformers and tokenizers raise anything for unusable files
        if "trust_remote_code" in str(error):
            raise InputError(f"{folder}: {OWN_CODE}") from error
        raise InputError(f"{folder}: no tokenizer that can be loaded: {' '.join(str(error).split())[:200]}") from error
    _check_vocabulary(folder, tokenizer)
    for name in LEFTOVERS:
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def _check_vocabulary(folder: str | Path, tokenizer: Any) -> None:
    """Raises InputError for a tokenizer that has no other tokens than those that are found in any text.

    Where the vocabulary's file is missing, Transformers makes such a one from tokenizer_config.json, and counts its
    special tokens from 0.
    """
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):
        files = ", ".join(sorted({"tokenizer.json", *tokenizer.vocab_files_names.values()}))
        raise InputError(
            f"{folder}: its tokenizer has no vocabulary, only {len(tokenizer)} special tokens; it must lie in the"
            f" folder ({files})"
        )
