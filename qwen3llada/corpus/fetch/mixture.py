"""Mixtures: the rows of several sources interleaved by weight."""

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from qwen3llada.corpus.fetch.copying import json_lines, unit_hint
from qwen3llada.corpus.fetch.selection import Files, Selection, asks_heldout, heldout_openings, row_blocks, share
from qwen3llada.corpus.files.rows import Row
from qwen3llada.errors import InputError

Item = TypeVar("Item")
MIXTURE_FILE = "mixture.jsonl"


@dataclass(frozen=True, slots=True)
class Ingredient:
    """One source of a mixture: its files, and its weight relative to the others."""

    name: str
    files: list[Files]
    weight: float


def interleave(sources: Sequence[Iterator[Item]], weights: Sequence[float]) -> Iterator[Item]:
    """Items of all sources. The next item comes from the source furthest behind its share; ties go to the first.

    After n items each source has given its share of n, to within the number of sources. Ends when the source whose turn
    it is has no more items, so that the shares hold to the end.
    """
    taken = [0] * len(sources)
    total = sum(weights)
    for number in itertools.count(1):
        behind = [weight / total * number - count for weight, count in zip(weights, taken, strict=True)]
        turn = behind.index(max(behind))
        for item in sources[turn]:
            yield item
            break
        else:
            return
        taken[turn] += 1


def land_mixture(
    ingredients: Sequence[Ingredient], train: Path, heldout: Path | None, selection: Selection, *, as_text: bool
) -> int:
    """Interleave the rows of the sources into JSON lines in `train`; held-out rows go to `heldout`.

    `as_text`: write each row as {"text": its key}, so that sources with different columns fit together.
    Returns: number of conversations left out because one of their later prompts opens a held-out conversation.
    Raises: InputError if a folder gets no row.
    """
    folders = [train] + ([heldout] if heldout is not None and selection.heldout_fraction else [])
    openings = heldout_openings([files for ingredient in ingredients for files in ingredient.files], selection)
    dropped = 0
    written = dict.fromkeys(folders, 0)
    rows = [_rows(ingredient, selection, openings, as_text) for ingredient in ingredients]
    with ExitStack() as stack:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        files = {folder: stack.enter_context(open(folder / MIXTURE_FILE, "wb")) for folder in folders}
        for part, asks, line in interleave(rows, [ingredient.weight for ingredient in ingredients]):
            folder = folders[-1] if part < selection.heldout_fraction else train
            if folder == train and asks:
                dropped += 1
                continue
            files[folder].write(line + b"\n")
            written[folder] += 1
    for folder, count in written.items():
        if not count:
            hint = unit_hint([files for ingredient in ingredients for files in ingredient.files], selection)
            raise InputError(f"mixture of {', '.join(i.name for i in ingredients)}: no row for {folder.name}{hint}")
    return dropped


def _rows(
    ingredient: Ingredient, selection: Selection, openings: frozenset[int], as_text: bool
) -> Iterator[tuple[float, bool, bytes]]:
    """For each wanted row of a source: the number in [0, 1) that decides whether it is held out, whether a later
    prompt opens a held-out conversation, and its JSON line.
    """
    for files in ingredient.files:
        wanted = files.wanted(selection)
        number = 0
        for path in files.paths:
            for block in row_blocks(path, selection):
                lines = json_lines(block, selection.columns)
                for row, line in zip(block.rows(), lines, strict=True):
                    if wanted is None or number in wanted:
                        asks = asks_heldout(row, selection, openings)
                        yield share(row, path, selection), asks, _text_line(row, path, selection) if as_text else line
                    number += 1


def _text_line(row: Row, path: Path, selection: Selection) -> bytes:
    if row.error is not None:
        raise InputError(f"{path}: {row.error}")
    return json.dumps({"text": selection.key(path, row.value)}, ensure_ascii=False).encode(errors="surrogatepass")
