"""Pretraining sequences made while training: shards are read, tokenized and packed when a sample is asked for.

The shards are dealt out to lanes. A lane joins the documents of its shards, EOS after each, cuts them into sequences,
and starts over with its first shard after its last. Runs of `RUN` positions come from the lanes in turn. All of that
depends on the list of shards alone, so the sample at a position is the same with any number of processes and workers;
each of them reads the lanes that its positions come from.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from qwen3llada.artifacts import read_json
from qwen3llada.corpus.hub import HubFile, HubRepository, fetch
from qwen3llada.corpus.samples import Sample
from qwen3llada.corpus.text import file_blocks, text_column
from qwen3llada.corpus.text_tokens import TextEncoder
from qwen3llada.errors import InputError

STREAM_FILE = "stream.json"
#: Modules that decide which tokens come out of the shards.
CODE = ("blocks", "formats", "hub", "pieces", "reading", "stream", "text", "text_tokens")
MAX_LANES = 64  # each holds a block of text as tokens, a few megabytes
RUN = 8  # neighbouring positions of one lane: a micro-batch of one process then comes from few lanes

#: Where a lane goes on: shard (counted on over all passes), block in it, tokens of the block that are used up.
Place = tuple[int, int, int]


class TextStream:
    """The stream that `stream.json` in `folder` describes (a `TokenStream`). `tokenizer`: what the text is encoded by.

    Raises: ValueError if there is no such file.
    """

    def __init__(self, folder: Path, tokenizer: Any):
        if not (folder / STREAM_FILE).is_file():
            raise InputError(f"{folder / STREAM_FILE}: no such file; tokenize_pack writes it")
        self._described = read_json(folder / STREAM_FILE)
        self.sample_length: int = self._described["max_length"]
        self.shards: list[dict[str, Any]] = self._described["shards"]
        self.lanes = min(len(self.shards), MAX_LANES)
        self._encoder = TextEncoder(tokenizer)

    def read(self, positions: Iterator[int], cursors: Mapping[int, Any]) -> Iterator[Sample]:
        """The samples at `positions` (rising). `cursors`: what `needed` left of those before; empty: from the start.

        Raises: ValueError naming a shard that is not there any more, has changed, or cannot be read.
        """
        starts = {self._lane(position): (position, cursor) for position, cursor in sorted(cursors.items())}
        lanes: dict[int, Iterator[tuple[int, np.ndarray, Place]]] = {}
        for position in positions:
            lane = self._lane(position)
            if lane not in lanes:
                before, place = starts.get(lane, (None, (0, 0, 0)))
                first = 0 if before is None else self._number(before) + 1
                lanes[lane] = self._sequences(lane, first, place)
            wanted = self._number(position)
            for number, tokens, place in lanes[lane]:
                if number == wanted:  # those before are for other readers
                    yield Sample(tokens, cursor=list(place))
                    break

    def needed(self, cursors: Mapping[int, Any]) -> dict[int, Any]:
        """Those of the `cursors` of all samples so far that reading on needs: the last of each lane."""
        last = {self._lane(position): position for position in sorted(cursors)}
        return {position: cursors[position] for position in last.values()}

    def _lane(self, position: int) -> int:
        return position // RUN % self.lanes

    def _number(self, position: int) -> int:
        """Which of its lane's sequences is at a position."""
        return position // (RUN * self.lanes) * RUN + position % RUN

    def _sequences(self, lane: int, first: int, place: Place) -> Iterator[tuple[int, np.ndarray, Place]]:
        """A lane's sequences from number `first`, which begins at `place`: number, tokens, where the next begins."""
        numbers, length, rest = count(first), self.sample_length, np.empty(0, np.int32)
        skip = place[2]
        for shard, block, tokens in self._blocks(lane, place[0], place[1]):
            joined = np.concatenate([rest, tokens[skip:]])
            ends = range(length, len(joined) + 1, length)
            for end in ends:
                yield next(numbers), joined[end - length : end], (shard, block, skip + end - len(rest))
            rest, skip = joined[len(ends) * length :], 0

    def _blocks(self, lane: int, shard: int, first: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Tokens of a lane's blocks without end, from a block of a shard on: number of shard and block, [n] int32."""
        mine = self.shards[lane :: self.lanes]
        found = first > 0 or shard % len(mine) > 0  # a pass that was begun before had text
        for number in count(shard):
            for block, text in enumerate(self._texts(mine[number % len(mine)])):
                if number > shard or block >= first:
                    tokens = self._encoder(text).tokens
                    found = found or len(tokens) > 0
                    yield number, block, tokens
            if (number + 1) % len(mine) == 0:
                if not found:
                    raise InputError(f"{', '.join(entry['path'] for entry in mine)}: no text in it")
                found = False

    def _texts(self, shard: Mapping[str, Any]) -> Iterator[Any]:
        path = self._local(shard)
        if not path.is_file():
            raise InputError(f"{path}: no such file; it was there when the stream was described")
        if (size := path.stat().st_size) != shard["bytes"]:
            raise InputError(f"{path}: has {size} bytes and had {shard['bytes']} when the stream was described")
        column = partial(text_column, text_field=self._described["text_field"])
        yield from file_blocks(path, column, self._described["txt_unit"])

    def _local(self, shard: Mapping[str, Any]) -> Path:
        """The file of a shard; that of a hub repository is downloaded, or taken from the cache, and checked."""
        hub = self._described["repository"]
        if hub is None:
            return Path(shard["path"]).expanduser()
        file = HubFile(shard["path"], shard["bytes"], shard["sha256"], shard["blob"])
        repository = HubRepository(hub["name"], "dataset", hub["commit"], None, (file,))
        return fetch(repository, [file.path]) / file.path
