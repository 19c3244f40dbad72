"""The keyed noise of `qwen3llada.sampling.keyed_gumbel` inside Triton kernels: the same keys, the same words.

Functions for other kernels to call. Keys and words are uint64, whose arithmetic wraps.
"""

import triton
import triton.language as tl

_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX_2 = tl.constexpr(0x94D049BB133111EB)
TOKEN, SCORE, POSITION = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # as in `keyed_gumbel.STREAMS`


@triton.jit
def _mix(x):
    """SplitMix64's finaliser."""
    x = (x ^ (x >> 30)) * _MIX_1
    x = (x ^ (x >> 27)) * _MIX_2
    return x ^ (x >> 31)


@triton.jit
def _fold(key, value):
    """A new key from a key and an integer, as `keyed_gumbel.fold`."""
    return _mix(key ^ _mix(value.to(tl.uint64) + _GOLDEN))


@triton.jit
def step_key(key, step, STREAM: tl.constexpr, position):
    """The key of a position at one step, from the key (int64) of its row and block, as `keyed_gumbel.step_keys`."""
    key = _fold(_fold(key.to(tl.uint64, bitcast=True), step), tl.full((), STREAM, tl.int32))
    return _fold(key, position)


@triton.jit
def uniform64(key):
    """The first number of a key in the open interval (0, 1), float64, as `keyed_gumbel.uniform`."""
    return ((_mix(key + _GOLDEN) >> 12).to(tl.int64).to(tl.float64) + 0.5) * 2.220446049250313e-16  # 2^-52


@triton.jit
def gumbel64(key):
    """The first Gumbel number of a key, float64, as `keyed_gumbel.gumbel_float64`."""
    return -tl.log(-tl.log(uniform64(key)))


@triton.jit
def gumbel32(key, index):
    """Gumbel numbers `index` (int32, from 0) of a key, float32, from the words of `keyed_gumbel.gumbel_float64`.

    Large numbers, which decide, come from u next to 1, which float32 does not resolve. It resolves the smaller one of u
    and 1 - u, here x, built from the word's upper 32 and lower 20 bits. log(1 - x) is a series where x is small,
    because a GPU's fast logarithm is exact to 2^-22 only.
    """
    word = _mix(key + (index.to(tl.uint64) + 1) * _GOLDEN)
    low = word < 0x8000000000000000  # u below 1/2
    word = tl.where(low, word, word ^ 0xFFFFFFFFFFFFFFFF)
    x = (word >> 32).to(tl.uint32).to(tl.float32) * 2.3283064365386963e-10  # 2^-32
    x += (((word >> 12) & 0xFFFFF).to(tl.uint32).to(tl.float32) + 0.5) * 2.220446049250313e-16  # 2^-52
    series = 1.0 + x * (0.5 + x * (0.33333333 + x * (0.25 + x * (0.2 + x * (0.16666667 + x * 0.14285714)))))
    exponential = tl.where(low, -tl.log(x), tl.where(x < 0.0625, x * series, -tl.log(1.0 - x)))
    return -tl.log(exponential)
