"""Choice of the mask token's id, and its name in the tokenizer."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qwen3llada.errors import InputError
from qwen3llada.modeling.tokenizer_files import tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASK = "<|mask|>"
FILLER = "<|unused_{}|>"  # names for ids between the tokenizer's last and the mask's: its files allow no gaps
GROWTH_MULTIPLE = 64  # a grown embedding's rows are a multiple of this, for efficient matrix products

Origin = Literal["tokenizer", "added", "given"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskToken:
    """id: row of the embedding. origin: the tokenizer had a mask token, one was added, or an id was given.

    shadowed: the token that had this id, if any. vocab_size: rows that the embedding needs.
    """

    id: int
    token: str
    origin: Origin
    shadowed: str | None
    vocab_size: int


def load_any_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a checkpoint folder, fast or slow. Code in the folder is never run.

    Raises InputError if there is no tokenizer, it is broken, or it needs code of its own.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        raise InputError(f"{folder}: has no tokenizer files (tokenizer.json, tokenizer_config.json)")
    return tokenizer_of(folder)


def give_mask_token(
    tokenizer: "PreTrainedTokenizerBase", mask_token: int | Literal["auto"], vocab_size: int
) -> MaskToken:
    """Choose the mask token for an embedding of `vocab_size` rows, and add it to `tokenizer` in place.

    `auto`: the tokenizer's mask token, else `<|mask|>` at the first id after its last. The embedding grows only if it
    has no such row. An explicit id must be a row; a warning names the token that it shadows.
    Raises: InputError for an id outside the embedding, and for a token that ends, begins or pads texts.
    """
    taken = {number: token for token, number in tokenizer.get_vocab().items()}
    origin, number, name = _choose(tokenizer, taken, mask_token, vocab_size)
    _check_role(tokenizer, number, name)
    shadowed = name if origin == "given" and number in taken and name not in (MASK, tokenizer.mask_token) else None
    if shadowed is not None:
        log.warning(
            f"mask_token={number} is the tokenizer's token {shadowed!r} ({tokenizer.decode([number])!r}): text with it "
            "will be read as masked, and it will never be sampled"
        )
    _name(tokenizer, number, name, first_free=max(taken) + 1)
    grown = -(-(number + 1) // GROWTH_MULTIPLE) * GROWTH_MULTIPLE
    return MaskToken(number, name, origin, shadowed, vocab_size if number < vocab_size else grown)


def _choose(
    tokenizer: "PreTrainedTokenizerBase", taken: dict[int, str], mask_token: int | Literal["auto"], vocab_size: int
) -> tuple[Origin, int, str]:
    """Origin, id and name of the mask token. `taken`: the tokenizer's tokens by id."""
    if mask_token != "auto":
        if not 0 <= mask_token < vocab_size:
            raise InputError(f"{mask_token=} must be a row of the embedding, in [0, {vocab_size}), or auto")
        return "given", mask_token, taken.get(mask_token, MASK)
    if tokenizer.mask_token_id is not None:
        return "tokenizer", tokenizer.mask_token_id, tokenizer.mask_token
    known = {token: number for number, token in taken.items()}
    return "added", known.get(MASK, max(taken) + 1), MASK


def _check_role(tokenizer: "PreTrainedTokenizerBase", number: int, name: str) -> None:
    roles = {"ends": tokenizer.eos_token_id, "begins": tokenizer.bos_token_id, "pads": tokenizer.pad_token_id}
    for role, taken in roles.items():
        if number == taken:
            raise InputError(f"mask_token={number} must not be {name!r}, which {role} a text in this tokenizer")


def _name(tokenizer: "PreTrainedTokenizerBase", number: int, name: str, first_free: int) -> None:
    """Make `name` the mask token with id `number`. Ids are assigned in order, so free ids before it get names, too."""
    if number >= first_free:
        filler = [FILLER.format(i) for i in range(first_free, number)]
        if filler:
            tokenizer.add_tokens(filler, special_tokens=True)
    tokenizer.add_special_tokens({"mask_token": name})
    if tokenizer.mask_token_id != number:
        raise InputError(f"the tokenizer gives {name!r} the id {tokenizer.mask_token_id}, not {number}")
