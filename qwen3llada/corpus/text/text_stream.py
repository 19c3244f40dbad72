"""Pretraining sequences made during training: shards are read, tokenized and packed on demand.

Shards are assigned to lanes (`lanes`). A lane joins the documents of its shards, EOS after each, cuts them into
sequences, and starts over after its last shard. Runs of `RUN` positions come from the lanes in turn, in proportion to
their text. All of this depends only on `stream.json`, so the sample at a position is the same for any number of ranks
and workers. Each of them reads only the lanes of its own positions.
"""

from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from qwen3llada.artifacts import read_json
from qwen3llada.batches.samples import Sample
from qwen3llada.corpus.fetch.hub import HubFile, HubRepository, fetch
from qwen3llada.corpus.text.documents import file_blocks
from qwen3llada.corpus.text.encode import TextEncoder
from qwen3llada.corpus.text.lanes import ranks, turns
from qwen3llada.errors import InputError

STREAM_FILE = "stream.json"
#: Modules that determine the tokens made from the shards.
CODE = (
    *("files/rows", "files/formats", "files/reading", "fetch/hub"),
    *("text/lanes", "text/piece_encoder", "text/same_text", "text/text_stream", "text/documents", "text/encode"),
)
HELDOUT_FILE = "heldout.npy"  # hashes of held-out documents, which training skips
RUN = 8  # consecutive positions from one lane, so that a micro-batch of one rank comes from few lanes

#: Where a lane continues: shard (counted on over all passes), block in it, tokens of the block already used.
Place = tuple[int, int, int]


class TextStream:
    """The stream described by `stream.json` in `folder` (a `TokenStream`). `tokenizer` encodes the text.

    Raises: InputError if there is no such file.
    """

    def __init__(self, folder: Path, tokenizer: Any):
        if not (folder / STREAM_FILE).is_file():
            raise InputError(f"{folder / STREAM_FILE}: no such file; tokenize_pack writes it")
        self._described = read_json(folder / STREAM_FILE)
        self.sample_length: int = self._described["max_length"]
        self.shards: list[dict[str, Any]] = self._described["shards"]
        self.lanes: list[list[int]] = self._described["lanes"]  # shard numbers of each lane
        self._turns = turns([sum(shard_size(self.shards[i]) for i in lane) for lane in self.lanes])
        self._ranks = ranks(self._turns)
        self._counts = np.bincount(self._turns)
        self._encoder = TextEncoder(tokenizer, frozenset(np.load(folder / HELDOUT_FILE).tolist()))

    def read(self, positions: Iterator[int], cursors: Mapping[int, Any]) -> Iterator[Sample]:
        """The samples at `positions` (increasing). `cursors`: what `needed` kept of earlier samples; empty: start.

        Raises: InputError naming a shard that is missing, has changed, or cannot be read.
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
                if number == wanted:  # earlier ones belong to other readers
                    yield Sample(tokens, cursor=list(place))
                    break

    def needed(self, cursors: Mapping[int, Any]) -> dict[int, Any]:
        """The `cursors` that reading on needs: the last of each lane."""
        last = {self._lane(position): position for position in sorted(cursors)}
        return {position: cursors[position] for position in last.values()}

    def _lane(self, position: int) -> int:
        return int(self._turns[position // RUN % len(self._turns)])

    def _number(self, position: int) -> int:
        """Number of the sequence within its lane at a position."""
        cycle, turn = divmod(position // RUN, len(self._turns))
        before = cycle * int(self._counts[self._turns[turn]]) + int(self._ranks[turn])
        return before * RUN + position % RUN

    def _sequences(self, lane: int, first: int, place: Place) -> Iterator[tuple[int, np.ndarray, Place]]:
        """Sequences of a lane from number `first`, starting at `place`: number, tokens, start of the next one."""
        numbers, length, rest = count(first), self.sample_length, np.empty(0, np.int32)
        skip = place[2]
        for shard, block, tokens in self._blocks(lane, place[0], place[1]):
            joined = np.concatenate([rest, tokens[skip:]])
            ends = range(length, len(joined) + 1, length)
            for end in ends:
                yield next(numbers), joined[end - length : end], (shard, block, skip + end - len(rest))
            rest, skip = joined[len(ends) * length :], 0

    def _blocks(self, lane: int, shard: int, first: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Endless token blocks of a lane from a block of a shard on: numbers of shard and block, [n] int32."""
        mine = [self.shards[i] for i in self.lanes[lane]]
        found = first > 0 or shard % len(mine) > 0  # an earlier part of this pass had text
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
        yield from file_blocks(path, self._described["text_field"], self._described["txt_unit"])

    def _local(self, shard: Mapping[str, Any]) -> Path:
        return local_shard(self._described["repository"], shard)


def shard_size(shard: Mapping[str, Any]) -> int:
    """Amount of text in a shard: bytes of its documents as UTF-8, or of its file if it was not read before."""
    return shard.get("text_bytes", shard["bytes"])


def local_shard(repository: Mapping[str, Any] | None, shard: Mapping[str, Any]) -> Path:
    """The local file of a shard. A hub shard is downloaded or taken from the cache, and verified."""
    if repository is None:
        return Path(shard["path"]).expanduser()
    file = HubFile(shard["path"], shard["bytes"], shard["sha256"], shard["blob"])
    found = HubRepository(repository["name"], "dataset", repository["commit"], None, (file,))
    return fetch(found, [file.path]) / file.path
