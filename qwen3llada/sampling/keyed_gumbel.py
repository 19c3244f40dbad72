"""Noise that depends on keys, not on the order of calls.

Every number is a pure function of (seed, row, block, step, position, token): the same row gets the same noise in any
batch, on any device, eager or in a CUDA graph. The generator is SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable
pseudorandom number generators"), written in wrapping int64 arithmetic, which torch has on every device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 2^64 / golden ratio (odd), as a signed number
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
_FRACTION_BITS = 52  # float64 holds 53: the half added below stays exact, and 1.0 is never drawn

STREAMS = ("token", "score", "position")  # each has its number here as its key


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift. torch's int64 shift copies the sign bit; the mask clears those copies."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of 64-bit words. Any shape."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def fold(key: Tensor, value: Tensor | int) -> Tensor:
    """A new key from a key and an integer (broadcast). Different pairs give unrelated keys. int64."""
    if isinstance(value, int):  # computed on the host: a CUDA graph cannot contain a host-to-device copy
        return _mix(key ^ int(_mix(torch.tensor(value) + _GOLDEN)))
    return _mix(key ^ _mix(value.long() + _GOLDEN))


def row_keys(seed: int, rows: Sequence[int]) -> Tensor:
    """Keys [B] on the CPU, from the seed and each row's number."""
    return fold(fold(torch.tensor(0), seed), torch.tensor(list(rows)))


def step_keys(rows: Tensor, step: Tensor | int, positions: int) -> Tensor:
    """Keys [3, U, positions] of a block's positions at one step, for each of `STREAMS`, from the keys [U] of blocks."""
    streams = torch.arange(len(STREAMS), device=rows.device)
    keys = fold(fold(rows, step), streams[:, None])
    return fold(keys[..., None], torch.arange(positions, device=rows.device))


def _words(keys: Tensor, count: int) -> Tensor:
    """`count` words of `_FRACTION_BITS` random bits for each key [N]: [N, count], int64."""
    index = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device)
    return _shift(_mix(keys[:, None] + index * _GOLDEN), 64 - _FRACTION_BITS)


def uniform(keys: Tensor, count: int) -> Tensor:
    """`count` numbers in the open interval (0, 1) for each key [N]: [N, count], float64."""
    return (_words(keys, count).double() + 0.5) * 2.0**-_FRACTION_BITS


def gumbel(uniforms: Tensor) -> Tensor:
    """Standard Gumbel noise from uniform numbers in (0, 1): -log(-log u). Any shape, float64 in, float64 out."""
    return -torch.log(-torch.log(uniforms))


def gumbel_float64(keys: Tensor, count: int) -> Tensor:
    """`count` standard Gumbel numbers for each key [N]: [N, count], float64."""
    return gumbel(uniform(keys, count))
