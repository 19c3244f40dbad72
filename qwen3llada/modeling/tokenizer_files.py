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

    Raises: InputError if there is no tokenizer, if it is broken, or if it needs its own code.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # Transformers and tokenizers raise anything for unusable files
        if "trust_remote_code" in str(error):
            raise InputError(f"{folder}: {OWN_CODE}") from error
        raise InputError(f"{folder}: no tokenizer that can be loaded: {' '.join(str(error).split())[:200]}") from error
    for name in LEFTOVERS:
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer
