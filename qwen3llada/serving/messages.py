"""The messages of a chat: an optional system message, then user and assistant in turn."""

from collections.abc import Mapping
from typing import Any

from qwen3llada.corpus.conversations.records import Exchange
from qwen3llada.errors import InputError


def read_messages(messages: Any) -> Exchange:
    """The last question of a conversation with all before it. Raises InputError."""
    if not isinstance(messages, list) or not messages:
        raise InputError("messages must be a list with at least one message")
    turns = [(_role(number, message), _content(number, message)) for number, message in enumerate(messages)]
    system = None
    if turns[0][0] == "system":
        system, turns = turns[0][1], turns[1:]
    roles = [role for role, _ in turns]
    if not roles or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(roles)) or roles[-1] != "user":
        raise InputError(
            f"messages must be an optional system message, then user and assistant in turn, a user last; given {roles}"
        )
    contents = [content for _, content in turns]
    if not contents[-1].strip():
        raise InputError("messages: the question is blank")
    return Exchange(contents[-1], "", system, tuple(zip(contents[:-1:2], contents[1::2], strict=True)))


def _role(number: int, message: Any) -> str:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ("system", "developer", "user", "assistant"):
        raise InputError(f"messages[{number}]: role={role!r:.40} must be system, developer, user or assistant")
    _refuse_others(message, ("role", "content"), f"messages[{number}]")
    return "system" if role == "developer" else str(role)


def _content(number: int, message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        parts = [_part(number, place, part) for place, part in enumerate(content)]
        content = "".join(part for part in parts if part is not None) if None not in parts else None
    if not isinstance(content, str):
        raise InputError(f"messages[{number}]: content must be text, or a list of text parts")
    return content


def _part(number: int, place: int, part: Any) -> str | None:
    """The text of a part of a message; None where it is none."""
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    if not isinstance(text, str):
        return None
    _refuse_others(part, ("type", "text"), f"messages[{number}]: content[{place}]")
    return text


def _refuse_others(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """Raises InputError for a field that is not known, unless it is empty and so means nothing."""
    for name, value in values.items():
        if name not in known and value not in (None, "", [], {}):
            raise InputError(f"{where}: {name!s:.40}={value!r:.40} is not supported; leave it out")
