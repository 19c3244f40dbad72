"""Steps that the sampler's attention kernels share."""

import triton
import triton.language as tl

NOTHING = tl.constexpr(-1.0e30)  # less than any score; unlike -inf, NOTHING - NOTHING is 0 and not NaN
LOG2_E = 1.4426950408889634


@triton.jit
def softmax_step(acc, top, total, scores, v, PRECISION: tl.constexpr):
    """Update the running maximum, sum and weighted values by one tile of keys (FlashAttention, arXiv 2205.14135).

    M queries and N keys: acc [M, E], top and total [M], scores [M, N] times log2(e), v [N, E].
    """
    higher = tl.maximum(top, tl.max(scores, 1))
    decay = tl.exp2(top - higher)
    p = tl.exp2(scores - higher[:, None])
    acc = acc * decay[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
    return acc, higher, total * decay + tl.sum(p, 1)


@triton.jit
def keys_of_blocks(query, queries, block_length, window, shift):
    """Range of keys that queries of whole blocks see (see `Blocks`), counted from the unit's first token."""
    block = (tl.minimum(query, queries - 1) + shift) // block_length
    last = (block + 1) * block_length - shift
    return last - (window + 1) * block_length, last
