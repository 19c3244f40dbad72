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
        self.spare = len(to.keys[0]) - 1  # the row of padding units
        self.tokens = torch.zeros(rows, queries, dtype=torch.int64, device=device)
        self.rows = torch.full((rows,), self.spare, dtype=torch.int64, device=device)
        self.columns = torch.arange(queries, device=device)
        self.write = Write(to=to, rows=self.rows, columns=self.columns)

    def fill(self, first: int, tokens: Tensor, rows: Tensor) -> None:
        """Enter tokens [n, ...], aligned to the right, and their rows [n] in the prefix, from row `first` on."""
        self.tokens[first : first + len(rows), -tokens.shape[1] :] = tokens
        self.rows[first : first + len(rows)].copy_(rows, non_blocking=True)
