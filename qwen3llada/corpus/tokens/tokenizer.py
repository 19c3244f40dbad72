"""The tokenizer of a model folder, and the check that data were made with it."""

import json
from pathlib import Path
from typing import Any

from qwen3llada.artifacts import read_json, text_digest
from qwen3llada.corpus.tokens.packing import MANIFEST
from qwen3llada.errors import InputError
from qwen3llada.modeling.tokenizer_files import tokenizer_of

_OF_A_TOKEN = ("id", "single_word", "lstrip", "rstrip", "normalized")


def load_tokenizer(folder: str | Path) -> Any:
    """The fast tokenizer in `folder`. Code in the folder is never run.

    Raises: InputError if there is no tokenizer, if it needs its own code, or if it has no fast implementation.
    """
    if not Path(folder).is_dir():
        raise InputError(
            f"{folder}: no such folder; it must hold a model with its tokenizer, as download and convert write it"
        )
    tokenizer = tokenizer_of(folder)
    if not tokenizer.is_fast:
        raise InputError(f"{folder}: its tokenizer has no fast implementation (tokenizer.json), which is needed here")
    return tokenizer


def identity(tokenizer: Any) -> dict[str, Any]:
    """The properties that determine the token ids of a text, for the manifest of data.

    tokenizer_sha256: hash of the vocabulary with its merges, the processing of text before, BOS and EOS. added_tokens:
    tokens that are found in any text. Special tokens are not included, because text that looks like one is encoded as
    plain text. So the mask token that conversion adds changes nothing.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    decisive = [_stripped(parts[name]) for name in ("normalizer", "pre_tokenizer", "model")]
    decisive += [
        [getattr(tokenizer, f"{name}_token"), getattr(tokenizer, f"{name}_token_id")] for name in ("bos", "eos")
    ]
    added = {
        token["content"]: [token[key] for key in _OF_A_TOKEN] for token in parts["added_tokens"] if not token["special"]
    }
    return {"tokenizer_sha256": _digest(decisive), "added_tokens": added}


def template_identity(tokenizer: Any, template: str) -> dict[str, Any]:
    """The form of prompts, for the manifest: the template's name and, for `chat`, a hash of the chat template."""
    if template != "chat":
        return {"template": template, "chat_template_sha256": None}
    source = str(tokenizer.chat_template)
    named = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.content in source}
    return {"template": template, "chat_template_sha256": _digest([source, named])}


def check_data(folder: Path, tokenizer: Any, template: str | None) -> None:
    """Raises InputError unless the tokens in `folder` were made with `tokenizer` and, for prompts, with `template`.

    None stands for any template: that of a model which was trained on text alone.
    The model's mask token may differ from that of the data's tokenizer, because conversion chooses it.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{path}: no such file; tokenize_pack writes it")
    theirs = read_json(path)
    if not theirs.keys() >= {"tokenizer_sha256", "added_tokens", "template"}:
        raise InputError(f"{path}: does not say which tokenizer and template the data have; run tokenize_pack again")
    ours, model = identity(tokenizer), tokenizer.name_or_path
    unlike = [
        token
        for token in sorted(ours["added_tokens"].keys() | theirs["added_tokens"].keys())
        if ours["added_tokens"].get(token) != theirs["added_tokens"].get(token) and token != tokenizer.mask_token
    ]
    if ours["tokenizer_sha256"] != theirs["tokenizer_sha256"] or unlike:
        what = f"the added tokens {', '.join(unlike)} differ" if unlike else "the vocabulary or its rules differ"
        raise InputError(f"{folder}: was made with another tokenizer than that of the model {model}: {what}")
    if theirs["template"] is None or template is None:  # plain text has no prompts
        return
    if theirs["template"] != template:
        raise InputError(f"{folder}: its prompts have template={theirs['template']}, the model's have {template}")
    if theirs["chat_template_sha256"] != template_identity(tokenizer, template)["chat_template_sha256"]:
        raise InputError(f"{folder}: was made with another chat template than that of the model {model}")


def _stripped(tree: Any) -> Any:
    """Remove settings that are off or concern only offsets, because Transformers may or may not write them."""
    if isinstance(tree, list):
        return [_stripped(part) for part in tree]
    if not isinstance(tree, dict):
        return tree
    off = {key for key, value in tree.items() if value is None or value is False or value == ""}
    return {key: _stripped(value) for key, value in tree.items() if key not in off | {"trim_offsets"}}


def _digest(parts: Any) -> str:
    return text_digest(json.dumps(parts, sort_keys=True))
