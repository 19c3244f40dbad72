"""Parts of a row that its mapped record does not contain: text in unused fields, and media."""

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qwen3llada.corpus.conversations.fields import CONTENT, HUMAN, filled, is_media_part
from qwen3llada.corpus.conversations.records import visible

_ABOUT = """
id ids uuid guid key index idx hash md5 sha256 digest source sources origin dataset subset split config
task tasks category categories subcategory class classes label labels tag tags topic topics subject subjects domain
domains type kind style level difficulty quality score scores rating ratings lang language languages locale country
model models generator engine author authors annotator annotators username email url urls uri link links
path paths file filename licence license copyright doi date time datetime timestamp created updated year version
status meta metadata role from
"""
#: Fields with information about a row. Their text is not part of the conversation, so it is not reported.
ABOUT = frozenset(_ABOUT.split())
_ABOUT_ENDING = re.compile(
    r"_(?:ids?|uuid|key|idx|index|hash|urls?|uri|name|type|source|dataset|split|task|category|labels?|tags?|topic|subject"
    r"|domain|level|quality|scores?|rating|lang|language|model|author|path|file|licen[cs]e|date|time|timestamp|at|version)"
)
#: Fields that are reported whatever they contain: media, and tools that a model may call.
_MEDIA = re.compile(r"(?:input_)?(?:images?|imgs?|videos?|audios?)(?:_(?:url|urls|path|paths|file))?")
_CALLS = frozenset({"tools", "functions", "tool_calls", "function_call"})
#: Placeholders for media in text: <image>, <image_1>, <|video_pad|>, <|vision_start|>, <ImageHere>, [IMG].
_PLACEHOLDER = re.compile(
    r"<(?P<bar>\|)?(?P<name>image|img|video|audio|vision)"
    r"(?:[ _-]?(?:\d+|pad|start|end|bos|eos|token|soft|placeholder|here))*(?(bar)\|)>|\[IMG\]",
    re.IGNORECASE,
)
# A single ASCII word: an identifier, label, number or path. It is reported only in fields of a conversation.
_WORD = re.compile(r"[!-~]*")


MEDIA, CALLS = object(), object()  # stand for the values of such fields


@dataclass(frozen=True, slots=True)
class Lost:
    """`fields`: paths of unused fields (`messages.name`). `media`: number of unused media."""

    fields: tuple[str, ...]
    media: int


def find_lost(row: Mapping[str, Any], record: Mapping[str, Any], *, known: tuple[str, ...] = ()) -> Lost:
    """The parts of `row` that are missing in `record`, the well-formed record it was mapped to.

    A text counts as used if a text of the record contains it, or if it contains every line of the record (a rendering
    of the same conversation). `known`: columns left out on purpose.
    """
    turns = record["conversations"]
    texts = ([record["system"]] if record["system"] else []) + [turn["value"] for turn in turns]
    used, whole = set(texts), "\0".join(texts)
    fields: dict[str, None] = {}
    parts, has_media = 0, False
    for path, leaf in _leaves(row, "", known):
        if is_media_part(leaf):
            parts += 1
        elif leaf is MEDIA:
            has_media = True
            fields[path] = None
        elif leaf is CALLS or not (leaf in used or leaf.strip() in whole or _renders(leaf, texts)):
            fields[path] = None
    human = [turn["value"] for turn in turns if turn["from"] == HUMAN]
    places = sum(len(_PLACEHOLDER.findall(text)) for text in texts) if has_media else sum(map(_bare_places, human))
    return Lost(tuple(map(_shown, fields)), max(parts, places))


def unused_settings(row: Mapping[str, Any], knobs: Container[str]) -> tuple[str, ...]:
    """Fields of a row that read like a setting: a number, true or false, or anything under the name of a knob.

    `find_lost` does not report them, because rows of training data have many. Fields of a conversation and those with
    information about the row do not count.
    """
    names = (str(name) for name, value in row.items() if isinstance(value, int | float) or (name in knobs and value))
    return tuple(_shown(name) for name in names if name not in CONTENT and not _is_about(name.casefold()))


def _shown(path: str) -> str:
    return visible(path).replace(",", r"\x2c")


def _leaves(value: Any, path: str, known: tuple[str, ...] = (), *, words: bool = False) -> Iterator[tuple[str, Any]]:
    """Paths and texts in `value`, its media parts, and `MEDIA` or `CALLS` for filled fields of these kinds.

    `words`: also yield texts of a single word.
    """
    if isinstance(value, Mapping):
        if is_media_part(value):
            yield path, value
        for key, item in value.items():
            name = str(key).casefold()
            below = f"{path}.{key}" if path else str(key)
            if _MEDIA.fullmatch(name) or name in _CALLS:
                if filled(item):
                    yield below, CALLS if name in _CALLS else MEDIA
            elif key not in known and not _is_about(name):
                yield from _leaves(item, below, words=words or name in CONTENT)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, path, words=words)
    elif isinstance(value, str) and filled(value) and (words or not _WORD.fullmatch(value.strip())):
        yield path, value


def _is_about(name: str) -> bool:
    return name in ABOUT or _ABOUT_ENDING.fullmatch(name, max(0, name.rfind("_"))) is not None


def _renders(leaf: str, texts: list[str]) -> bool:
    """Whether `leaf` contains every line of two or more `texts`, in order and not inside other words."""
    if len(texts) < 2 or len(leaf) < sum(map(len, texts)):
        return False
    place = 0
    for line in filter(filled, (line.strip() for text in texts for line in text.splitlines())):
        place = _end_of(line, leaf, place)
        if place < 0:
            return False
    return True


def _end_of(line: str, text: str, start: int) -> int:
    """End of the first occurrence of `line` in `text[start:]` that is not inside a word; -1 if there is none."""
    while (start := text.find(line, start)) >= 0:
        end = start + len(line)
        if not (text[start - 1 : start].isalnum() or text[end : end + 1].isalnum()):
            return end
        start += 1
    return -1


def _bare_places(text: str) -> int:
    """Number of placeholders at the ends of a prompt without media in the row. Closed HTML tags do not count."""
    found = [m for m in _PLACEHOLDER.finditer(text) if f"</{m['name']}".casefold() not in text.casefold()]
    inner = text.strip()
    return sum(inner.startswith(m.group()) or inner.endswith(m.group()) for m in found)
