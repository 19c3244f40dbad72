"""Memory that the passes of a program read: where their units are, what they see, and which tokens are stored.

Shapes: R rows of the model's input, Q queries of each.
"""

import torch
from torch import Tensor

from qwen3llada.sampling.cuda.attention_ranges import Range
from qwen3llada.sampling.cuda.packed_model import KeyValues, Write


class Places:
    """Memory that says where the rows of a pass are and what they see."""

    def __init__(self, rows: int, queries: int, spare: int, device: torch.device) -> None:
        self.queries = queries
        self.positions = torch.zeros(rows, queries, dtype=torch.int32, device=device)
        self.ranges = torch.zeros(len(Range), rows, dtype=torch.int32, device=device)
        self.ranges[Range.OWN_HIGH] = queries  # padding units see themselves, so that softmax stays finite
        self.ranges[Range.OWNER] = spare

    def fill(self, first: int, positions: Tensor, ranges: Tensor) -> None:
        """Copy positions [n, Q] and ranges [7, n], both int32 on the CPU, to the rows from `first` on."""
        at = slice(first, first + len(positions))
        self.positions[at].copy_(positions, non_blocking=True)
        self.ranges[:, at].copy_(ranges, non_blocking=True)


class Stored:
    """Tokens whose keys and values a pass stores, and where."""

    def __init__(self, rows: int, queries: int, to: KeyValues, device: torch.device) -> None:
        self.tokens = torch.zeros(rows, queries, dtype=torch.int64, device=device)
        self.columns = to.keys[0].shape[1]
        firsts, counts = torch.zeros(2, rows, dtype=torch.int64, device=device)
        self.write = Write(to=to, firsts=firsts, counts=counts, read=False)

    def clear(self) -> None:
        """Store nothing."""
        self.tokens.zero_()
        self.write.counts.zero_()

    def fill(self, first: int, tokens: Tensor, rows: Tensor, column: int) -> None:
        """Enter tokens [n, ...], aligned to the right, from row `first` on.

        They are stored in the rows `rows` [n] of the prefix, the first of the Q in column `column`.
        """
        at = slice(first, first + len(rows))
        self.tokens[at, -tokens.shape[1] :] = tokens
        self.write.firsts[at].copy_(rows * self.columns + column, non_blocking=True)
        self.write.counts[at] = self.tokens.shape[1]
