"""Bytes that a decoder layer saves for its backward pass, from its shapes."""

from typing import Any


def layer_bytes(config: Any, computed: int, *, compiled: bool, masked: bool) -> int:
    """Bytes per token that a layer saves for its backward pass.

    Compiled: four vectors of the hidden size (the residual stream before and inside the layer, both normalised inputs),
    queries and keys before and after norm and rotation, values, the attention output, gate, up and their product.
    Otherwise each operation saves its inputs. Norms have two, SiLU has one, and all that concerns norms is in float32.

    Args:
        computed: bytes of a number in matrix products. Norms are computed in float32 in any case.
        masked: attention gets a mask. On a CPU, keys and values are then repeated for each query head.
    """
    hidden, between = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    if compiled:
        return computed * (4 * hidden + 3 * queries + 3 * keys + 3 * between)
    repeated = 2 * computed * (queries - keys) if masked else 0
    if computed == 4:
        return 4 * (6 * hidden + 4 * queries + 4 * keys + 4 * between) + repeated
    return 20 * hidden + 12 * queries + 12 * keys + 8 * between + repeated
