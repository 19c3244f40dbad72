"""Qwen3's body as few, large operations, which the sampler's CUDA graphs capture.

The weights and the arithmetic are those of the model's own layers. One matrix product gives queries, keys and values,
another gives gate and up. One kernel each does the work between the products. Shapes: U units of Q tokens (N = U·Q),
D hidden size, HQ query heads, HK key/value heads, E head size, B rows and P columns of a prefix.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qwen3llada.sampling.cuda.attention_ranges import Blocks
from qwen3llada.sampling.cuda.layer_kernels import Angles, Heads, Rotary, Store, norm_rope
from qwen3llada.sampling.cuda.products import choose_products
from qwen3llada.sampling.cuda.rotated_attention import rotated_attention

LENGTH_DEPENDENT = ("dynamic", "longrope")  # rotary embeddings that no table of positions can hold


def unsupported(model: Any) -> str | None:
    """Why a model cannot be packed, in one line; None if it can."""
    config = model.config
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act} is not silu"
    if config.rope_parameters["rope_type"] in LENGTH_DEPENDENT:
        return f"rotary embedding {config.rope_parameters['rope_type']} depends on the length of the text"
    for layer in model.model.layers:
        for linear in _linears(layer):
            if type(linear) is not nn.Linear:
                return f"a layer is {type(linear).__name__}, not a plain Linear"
        heads, mlp = layer.self_attn, layer.mlp
        if len({linear.bias is None for linear in (heads.q_proj, heads.k_proj, heads.v_proj)}) > 1:
            return "some of q_proj, k_proj and v_proj have a bias and some have none"
        if any(linear.bias is not None for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)):
            return "an MLP has biases"
    return None


def _linears(layer: Any) -> list[Any]:
    heads, mlp = layer.self_attn, layer.mlp
    return [heads.q_proj, heads.k_proj, heads.v_proj, heads.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def side_by_side(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The parameters one after the other [sum of outputs, …]. They become views of it: nothing is stored twice.

    The layers keep their parameters, names and values. A change in place to one of them also changes the whole.
    """
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, whole.split([len(parameter) for parameter in parameters]), strict=True):
        parameter.data = part
    return whole


def rotary_angles(model: Any) -> Angles:
    """The rotary embedding of every position of the model."""
    positions = torch.arange(model.config.max_position_embeddings, device=model.device)
    cos, sin = model.model.rotary_emb(torch.zeros((), device=model.device), positions[None])
    half = cos.shape[-1] // 2
    return Angles(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())


def _pointers(model: Any) -> list[int]:
    return [parameter.data_ptr() for parameter in model.parameters()]


@dataclass(frozen=True)
class Layer:
    """The weights of one layer."""

    input_norm: Tensor
    qkv: Tensor  # [(HQ + 2·HK)·E, D]
    qkv_bias: Tensor | None  # [(HQ + 2·HK)·E], where config.attention_bias is true
    q_norm: Tensor
    k_norm: Tensor
    out: Tensor
    out_bias: Tensor | None  # [D]
    post_norm: Tensor
    gate_up: Tensor  # [2·I, D]
    down: Tensor  # [D, I]

    @property
    def matrices(self) -> list[Tensor]:
        return [self.qkv, self.out, self.gate_up, self.down]

    @property
    def biased(self) -> bool:
        return self.qkv_bias is not None or self.out_bias is not None


@dataclass(frozen=True)
class KeyValues:
    """Keys and values for later passes to read, per layer [B, P, HK, E] each. Padding units own the last row."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]

    @classmethod
    def empty(cls, model: "PackedModel", rows: int, columns: int) -> "KeyValues":
        shape = (rows + 1, columns, model.heads.keys, model.heads.size)
        like = model.layers[0].qkv
        keys, values = ([like.new_zeros(shape) for _ in model.layers] for _ in range(2))
        return cls(keys, values)


@dataclass(frozen=True, kw_only=True)
class Write:
    """Where a pass stores keys and values of the first tokens of its units.

    read: whether units of the same pass read them.
    """

    to: KeyValues
    firsts: Tensor  # [U] int64, place of a unit's first token among the B·P of `to`
    counts: Tensor  # [U] int64, how many of its tokens are stored
    read: bool


class PackedModel:
    """The body of a Qwen3 model. Shares the model's weights; `stale` tells when the model's weights have moved."""

    def __init__(self, model: Any) -> None:
        config = model.config
        size = model.model.layers[0].self_attn.head_dim
        self.heads = Heads(config.num_attention_heads, config.num_key_value_heads, size)
        self.eps, self.angles = config.rms_norm_eps, rotary_angles(model)
        self.layers = [self._pack(layer) for layer in model.model.layers]
        self.embedding, self.norm = model.model.embed_tokens.weight.data, model.model.norm.weight.data
        self._model = weakref.ref(model)  # weak: this object is kept for the model and must not keep the model alive
        self._pointers = _pointers(model)

    @staticmethod
    def _pack(layer: Any) -> Layer:
        heads, mlp = layer.self_attn, layer.mlp
        projections = [heads.q_proj, heads.k_proj, heads.v_proj]
        biases = [linear.bias for linear in projections if linear.bias is not None]
        return Layer(
            input_norm=layer.input_layernorm.weight.data,
            qkv=side_by_side([linear.weight for linear in projections]),
            qkv_bias=side_by_side(biases) if biases else None,
            q_norm=heads.q_norm.weight.data,
            k_norm=heads.k_norm.weight.data,
            out=heads.o_proj.weight.data,
            out_bias=None if heads.o_proj.bias is None else heads.o_proj.bias.data,
            post_norm=layer.post_attention_layernorm.weight.data,
            gate_up=side_by_side([mlp.gate_proj.weight, mlp.up_proj.weight]),
            down=mlp.down_proj.weight.data,
        )

    @property
    def stale(self) -> bool:
        """Whether the model's weights have moved since they were packed, for example to another device or type."""
        return _pointers(self._model()) != self._pointers

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        ranges: Tensor,
        *,
        prefix: KeyValues | None = None,
        write: Write | None = None,
        blocks: Blocks | None = None,
        rows: Tensor | None = None,
        states: bool = True,
    ) -> Tensor | None:
        """Final hidden states [N, D] of tokens [U, Q] at positions [N] int32. With `rows` [R]: only of those, [R, D].

        Args:
            ranges: [7, U] int32, what each unit sees (see `attention_ranges.Range`).
            prefix: keys and values from which `ranges` selects what a unit sees besides its own.
            write: where to store keys and values of the units; None stores nothing.
            blocks: for units of whole blocks (see `attention_ranges.Blocks`).
            states: whether to return hidden states. If not, the pass ends after the last layer's keys and values.
        """
        x = nn.functional.embedding(tokens.reshape(-1), self.embedding)
        first, last, read = self.layers[0], len(self.layers) - 1, write is not None and write.read
        products = choose_products(x, first.matrices, self.eps, biased=first.biased)
        normed = products.normed(x, first.input_norm)
        for i, layer in enumerate(self.layers):
            qkv = products.project(normed, layer.qkv, layer.qkv_bias)
            store = None if write is None else Store(write.to.keys[i], write.to.values[i], write.firsts, write.counts)
            rotary = Rotary(layer.q_norm, layer.k_norm, positions, self.angles, self.eps)
            if i == last and not states:
                norm_rope(qkv, *rotary, self.heads, store)
                return None
            past = None if prefix is None else (prefix.keys[i], prefix.values[i])
            mixed = rotated_attention(qkv, rotary, past, ranges, self.heads, blocks, store, stored_first=read)
            if i == last and rows is not None:  # the last layer computes only the requested rows from here on
                mixed, x = mixed[rows], x[rows]
            normed = products.add(x, mixed, layer.out, layer.out_bias, layer.post_norm)
            following = self.norm if i == last else self.layers[i + 1].input_norm
            normed = products.add(x, products.gated(normed, layer.gate_up), layer.down, None, following)
        return products.states(x, normed, self.norm)
