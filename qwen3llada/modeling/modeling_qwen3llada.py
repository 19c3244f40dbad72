"""Qwen3 without its causal mask: every position may see every other.

Layers, weight names and fast paths are Qwen3's own; only the masks differ. Saved beside every checkpoint for
`trust_remote_code`, so this file imports only Transformers and torch.
"""

import inspect
import shutil
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3Attention,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3PreTrainedModel,
)

from .configuration_qwen3llada import Qwen3LLadaConfig

Mask: TypeAlias = Tensor | BlockMask | None
PACKAGE = "qwen3llada.modeling"  # of this file, where no checkpoint's copy of it runs
GENERATE = "custom_generate/generate.py"  # where Transformers looks for a checkpoint's own `generate`


class Qwen3LLadaModel(Qwen3Model):
    """Qwen3's body with bidirectional attention: [B,Q] ids to [B,Q,D] hidden states."""

    config_class = Qwen3LLadaConfig
    _supports_flash_attn = False  # flash_attn takes no [B,1,Q,K] mask; without a mask, sdpa calls the same kernel

    def __init__(self, config: Qwen3LLadaConfig):
        if config.mask_token_id is None:
            raise ValueError(f"{config.mask_token_id=} must be the id of the mask token, in [0, {config.vocab_size})")
        super().__init__(config)
        for module in self.modules():
            if isinstance(module, Qwen3Attention):
                module.is_causal = False  # while True, sdpa would silently treat "no mask" as "causal"

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Mask | dict[str, Mask] = None,
        position_ids: Tensor | None = None,
        past_key_values=None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ):
        """Run the layers.

        input_ids [B,Q], or inputs_embeds [B,Q,D].
        attention_mask: None (all see all); [B,K], 1 = real token, 0 = padding; [B,1,Q,K] boolean (True = visible) or
            additive (0 = visible, -inf = hidden); a FlexAttention `BlockMask`; or a dict of these, one per layer type.
        position_ids [B,Q]: by default the count of real tokens in a [B,K] mask, else the columns.
        past_key_values: keys and values of a prefix, which the queries see before their own: K = prefix + Q. Any object
            with `update(keys, values, layer_index, ...)` and `get_seq_length()`.
        Raises ValueError for a mask of another kind or shape, and for `is_causal=True`.
        """
        if kwargs.get("is_causal"):
            raise ValueError("is_causal=True must be False: pass a causal attention_mask instead")
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if inputs is None:
            raise ValueError("input_ids=None must be given where there are no inputs_embeds")
        batch, queries = inputs.shape[:2]
        keys = queries + (past_key_values.get_seq_length() if past_key_values is not None else 0)
        masks = self._mask_of_each_type(attention_mask)
        prepare = MaskFor(self.config._attn_implementation, (batch, 1, queries, keys), self.embed_tokens.weight.dtype)
        if position_ids is None:
            position_ids = count_positions(next(iter(masks.values())), queries)
        if isinstance(attention_mask, dict):
            masks = {kind: prepare(mask) for kind, mask in masks.items()}
        else:
            masks = dict.fromkeys(masks, prepare(attention_mask))
        for mask in masks.values():
            if options := flex_options(mask, queries):
                kwargs = {"kernel_options": options} | kwargs
        return super().forward(
            input_ids=input_ids,
            attention_mask=masks,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )

    def _mask_of_each_type(self, attention_mask: Mask | dict[str, Mask]) -> dict[str, Mask]:
        """The given mask for each of the model's layer types."""
        kinds = sorted(set(self.config.layer_types or ()))
        if not isinstance(attention_mask, dict):
            return dict.fromkeys(kinds, attention_mask)
        if not attention_mask.keys() >= set(kinds):
            raise ValueError(
                f"attention_mask has {sorted(attention_mask)} but must have {kinds}, the types of the layers"
            )
        return {kind: attention_mask[kind] for kind in kinds}


class Qwen3LLadaForMaskedLM(Qwen3ForCausalLM):
    """Body and vocabulary projection: logits [B,Q,V] of the token AT each position, not of the next one."""

    config_class = Qwen3LLadaConfig
    _supports_flash_attn = False

    def __init__(self, config: Qwen3LLadaConfig):
        Qwen3PreTrainedModel.__init__(self, config)  # not Qwen3ForCausalLM's, which would first build the causal body
        self.model = Qwen3LLadaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def can_generate(cls) -> bool:
        """True for a checkpoint's copy of this file: Transformers then binds the `generate` that lies beside it."""
        return __package__ != PACKAGE

    def generate(self, *args, **kwargs):
        raise NotImplementedError(
            "generate() decodes left to right, which this model does not: use qwen3llada.sampling.sampler.generate, or"
            " load the checkpoint with trust_remote_code=True, which brings a generate() of its own"
        )

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As Transformers saves a model, and the file by which it generates where this package is not installed."""
        super().save_pretrained(save_directory, *args, **kwargs)
        bound = getattr(self.generate, "func", None)  # what Transformers bound, a `functools.partial`
        source = Path(inspect.getfile(inspect.unwrap(bound))) if bound else Path(__file__).parent / GENERATE
        if kwargs.get("is_main_process", True) and source.is_file():
            (Path(save_directory) / GENERATE).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, Path(save_directory) / GENERATE)


def count_positions(mask: Mask, queries: int) -> Tensor | None:
    """Positions [B,Q] of the last Q columns of a [B,K] padding mask, counting real tokens from 0; None without one."""
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    return ((mask != 0).long().cumsum(-1) - 1).clamp(min=0)[:, -queries:]


def flex_options(mask: Mask, queries: int) -> dict[str, str]:
    """Options of FlexAttention for so many queries; empty where there is no `BlockMask`.

    On a GPU, fewer than 128 queries would take torch's kernel for decoding, whose sums in bfloat16 are wrong (torch
    2.11: 0.5 nats in a loss of 21, where the other kernel rounds by 0.01).
    """
    short = isinstance(mask, BlockMask) and queries < 128 and mask.kv_indices.device.type == "cuda"
    return {"BACKEND": "TRITON"} if short else {}


class MaskFor:
    """Converts any accepted mask to the form that an attention implementation takes.

    A query that would see no key (padding) sees every key instead. Its output is then finite, whatever the kernel does
    with an empty softmax, and no other row sees it.
    """

    def __init__(self, implementation: str, shape: tuple[int, int, int, int], dtype: torch.dtype):
        if implementation not in ("eager", "sdpa", "flex_attention"):
            raise ValueError(f"attention {implementation=} must be eager, sdpa or flex_attention")
        self.implementation, self.shape, self.dtype = implementation, shape, dtype

    def __call__(self, mask: Mask) -> Mask:
        """A tensor that broadcasts to [B,1,Q,K] or, for flex_attention, a `BlockMask`. None stays None."""
        if mask is None:
            return None
        if isinstance(mask, BlockMask):
            if self.implementation != "flex_attention":
                raise ValueError(
                    f"a BlockMask needs attention implementation flex_attention, not {self.implementation}"
                )
            return mask
        if mask.dim() == 2:
            mask = (mask != 0)[:, None, None, :]
        self._check(mask)
        if mask.dtype == torch.bool:
            return self._from_visible(mask | ~mask.any(-1, keepdim=True))
        mask = mask.to(self.dtype)
        hidden = mask <= torch.finfo(self.dtype).min  # the minimum of float32 becomes -inf in a narrower type
        mask = mask.masked_fill(hidden.all(-1, keepdim=True), 0)
        return mask.expand(self.shape) if self.implementation == "flex_attention" else mask

    def _from_visible(self, visible: Tensor) -> Mask:
        """Convert a boolean mask, True = visible, that broadcasts to [B,1,Q,K]."""
        if self.implementation == "sdpa":
            return visible
        if self.implementation == "eager":
            zero = torch.zeros((), dtype=self.dtype, device=visible.device)
            return zero.masked_fill(~visible, -torch.inf)
        batch, _, queries, keys = self.shape
        visible = visible.expand(self.shape)
        return create_block_mask(
            lambda b, h, q, k: visible[b, 0, q, k], B=batch, H=None, Q_LEN=queries, KV_LEN=keys, device=visible.device
        )

    def _check(self, mask: Tensor) -> None:
        batch, _, queries, keys = self.shape
        fits = mask.dim() == 4 and mask.shape[0] in (1, batch) and mask.shape[1] == 1
        if not fits or mask.shape[2] not in (1, queries) or mask.shape[3] != keys:
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)} but must be [B,K] = [{batch},{keys}] or "
                f"[B,1,Q,K] = [{batch},1,{queries},{keys}]"
            )
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise ValueError(f"attention_mask [B,1,Q,K] has {mask.dtype} but must be boolean or floating point")


Qwen3LLadaModel.register_for_auto_class("AutoModel")
Qwen3LLadaForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")

if __package__ == PACKAGE:  # not in a checkpoint's copy of this file, which Transformers runs
    AutoConfig.register(Qwen3LLadaConfig.model_type, Qwen3LLadaConfig)
    AutoModel.register(Qwen3LLadaConfig, Qwen3LLadaModel)
    AutoModelForMaskedLM.register(Qwen3LLadaConfig, Qwen3LLadaForMaskedLM)
