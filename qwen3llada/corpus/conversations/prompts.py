"""Encoding of prompts and answers as token ids, and the treatment of samples that are too long.

Tokenization and the sampler share this code, so that prompts have the same form in training and sampling.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

from qwen3llada.corpus.conversations.records import Exchange
from qwen3llada.errors import InputError

Template = Literal["plain", "chat"]
Overflow = Literal["drop", "truncate_prompt", "truncate_answer"]
Outcome = Literal["kept", "dropped", "prompt_truncated", "answer_truncated"]

_MARK = "\ue000"  # private use: replaces text that looks like a control token while a template is rendered
_MARK_END = "\ue001"


def encode_prompt(
    tokenizer: Any,
    template: Template,
    human: str,
    *,
    system: str | None = None,
    history: Sequence[tuple[str, str]] = (),
) -> list[int]:
    """Token ids of a prompt. `history` holds the earlier (human, gpt) pairs, oldest first.

    `plain`: BOS if the tokenizer has one, then system prompt, earlier turns, and question, each followed by a newline.
    `chat`: the tokenizer's chat template, including the generation prompt.

    Raises:
        InputError: `template` is unknown, or `chat` and the tokenizer has no chat template.
    """
    return encode_prompts(tokenizer, template, [Exchange(human, "", system, tuple(history))])[0]


def encode_prompts(tokenizer: Any, template: Template, exchanges: Sequence[Exchange]) -> list[list[int]]:
    """Token ids of the prompts of several exchanges, as `encode_prompt`, in one call of the tokenizer."""
    if template == "plain":
        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return [bos + ids for ids in encode_texts(tokenizer, [_plain(exchange) for exchange in exchanges])]
    if template != "chat":
        raise InputError(f"{template=} must be plain or chat")
    if not tokenizer.chat_template:
        raise InputError(f"template=chat needs a tokenizer with a chat template; {tokenizer.name_or_path!r} has none")
    return _encode_chats(tokenizer, exchanges)


def encode_answers(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of answers, each ended by EOS if the tokenizer has one."""
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [ids + eos for ids in encode_texts(tokenizer, texts)]


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts, without additions. Text that looks like a special token is encoded as plain text.

    Raises:
        InputError: a text cannot be encoded, for example because of a lone surrogate.
    """
    if not texts:
        return []
    try:
        encoded = tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )
    except (TypeError, UnicodeEncodeError):
        for number, text in enumerate(texts):
            if not is_encodable(text):
                raise InputError(f"text {number} is not valid Unicode: {text[:80]!r}") from None
        raise
    return encoded["input_ids"]


def is_encodable(text: str) -> bool:
    """Whether `text` can be encoded as UTF-8. Strings read from JSON may contain lone surrogates, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def fit(
    prompt: list[int], answer: list[int], max_length: int, overflow: Overflow, *, bos: int | None = None
) -> tuple[list[int], int, Outcome]:
    """Token ids of prompt and answer within `max_length`, the length of the prompt, and the outcome.

    `truncate_prompt` removes tokens from the start of the prompt, except a leading `bos`. The leading one goes too if
    another is left: then it begins a turn rather than the text (`<|im_start|>` in some tokenizers), and without the
    words after it would be a stray control token. `truncate_answer` removes tokens from the end of the answer, so a
    truncated answer has no EOS. If no prompt or no answer would be left, and under `drop`, the outcome is `dropped`,
    without tokens.
    """
    excess = len(prompt) + len(answer) - max_length
    if excess <= 0:
        return prompt + answer, len(prompt), "kept"
    if overflow == "truncate_prompt":
        head = prompt[:1] if prompt[:1] == [bos] and bos not in prompt[1 + excess :] else []
        rest = prompt[len(head) + excess :]
        if rest:
            return head + rest + answer, len(head) + len(rest), "prompt_truncated"
    elif overflow == "truncate_answer":
        if excess < len(answer):
            return prompt + answer[:-excess], len(prompt), "answer_truncated"
    elif overflow != "drop":
        raise InputError(f"{overflow=} must be drop, truncate_prompt or truncate_answer")
    return [], 0, "dropped"


def _plain(exchange: Exchange) -> str:
    """The text of a prompt without control tokens, each part on its own line."""
    parts = [exchange.system] if exchange.system else []
    parts += [text for pair in exchange.history for text in pair]
    return "".join(f"{part}\n" for part in [*parts, exchange.human])


def _messages(exchange: Exchange) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": exchange.system}] if exchange.system else []
    for human, gpt in exchange.history:
        messages += [{"role": "user", "content": human}, {"role": "assistant", "content": gpt}]
    return [*messages, {"role": "user", "content": exchange.human}]


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """The tokenizer's special tokens, text -> id: tokens declared special, and named ones (BOS, EOS, mask …)."""
    added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def _encode_chats(tokenizer: Any, exchanges: Sequence[Exchange]) -> list[list[int]]:
    """Token ids of rendered chat templates. Only control tokens from the template are encoded as control tokens."""
    from jinja2.exceptions import TemplateError

    special = control_tokens(tokenizer)
    pattern = re.compile("|".join(re.escape(text) for text in sorted(special, key=len, reverse=True)) or r"(?!)")
    conversations = [_messages(exchange) for exchange in exchanges]
    hidden = [_hide(messages, pattern) for messages in conversations]
    try:
        rendered = [
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            for messages, _ in hidden
        ]
    except TemplateError as error:  # the template is broken, or rejects a conversation (for example a system prompt)
        raise InputError(f"the tokenizer's chat template: {' '.join(str(error).split())}") from error
    pieces: list[str] = []  # text between control tokens, of all conversations, encoded in one call
    layout: list[list[int | None]] = []  # per conversation: ids of control tokens; None = the next piece
    for text, (_, restore) in zip(rendered, hidden, strict=True):
        row: list[int | None] = []
        start = 0
        for match in pattern.finditer(text):
            pieces.append(restore(text[start : match.start()]))
            row += [None, special[match.group()]]
            start = match.end()
        pieces.append(restore(text[start:]))
        layout.append([*row, None])
    encoded = iter(encode_texts(tokenizer, pieces))
    return [[i for item in row for i in ([item] if item is not None else next(encoded))] for row in layout]


def _hide(messages: list[dict[str, str]], pattern: re.Pattern[str]) -> tuple[list[dict[str, str]], Any]:
    """Messages with all text that looks like a control token replaced, and a function that restores it."""
    mark = _MARK
    while any(mark in message["content"] for message in messages):
        mark += _MARK
    found: list[str] = []

    def replace(match: re.Match[str]) -> str:
        found.append(match.group())
        return f"{mark}{len(found) - 1}{_MARK_END}"

    hidden = [{**message, "content": pattern.sub(replace, message["content"])} for message in messages]
    if not found:
        return hidden, lambda text: text
    marks = re.compile(f"{mark}(\\d+){_MARK_END}")
    return hidden, lambda text: marks.sub(lambda match: found[int(match.group(1))], text)
