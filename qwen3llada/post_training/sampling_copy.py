"""The model that rollouts are sampled from: a copy of the trained weights, in the form that the sampler takes.

The trained model may be sharded, compiled, captured in CUDA graphs, wrapped by adapters or stored in another precision.
Sampling from a copy touches none of that, works alike everywhere, and answers as the exported checkpoint would. Its
price is memory: the weights once more, in 16 bits under bf16 or fp16.
"""

from typing import Any

import torch
from torch import Tensor

from qwen3llada.modeling.loading import load_pretrained
from qwen3llada.modeling.params import store_attention
from qwen3llada.sampling.dialogue.text_model import TextModel
from qwen3llada.training.checkpoints.whole_tensors import reshard
from qwen3llada.training.run import Run

ADAPTER = "default"  # peft's name for the only adapter


class SamplingCopy:
    """A plain model with the weights of the run."""

    def __init__(self, run: Run) -> None:
        params = run.params
        dtype = torch.bfloat16 if params.bf16 else torch.float16 if params.fp16 else torch.float32
        model = load_pretrained(params.model, dtype=dtype)
        store_attention(model.config, params.attention)
        self.text = TextModel(model.to(run.device).eval().requires_grad_(False), run.tokenizer)

    @torch.no_grad()
    def refresh(self, run: Run) -> TextModel:
        """Copy the present weights, in place. All ranks must call this."""
        reshard(run.objective)
        modules = dict(run.model.named_modules())
        for name, target in self.text.model.named_parameters():
            owner, _, leaf = name.rpartition(".")
            target.copy_(_weight(modules[owner], leaf))
        return self.text


def _weight(module: Any, leaf: str) -> Tensor:
    """The unsharded parameter `leaf` of a module; under LoRA a weight has the adapter added, a bias has none."""
    if not hasattr(module, "base_layer"):
        return _unsharded(getattr(module, leaf))
    if leaf != "weight":
        return _unsharded(getattr(module.base_layer, leaf))
    from peft.utils.integrations import dequantize_module_weight

    base = _unsharded(dequantize_module_weight(module.base_layer))
    down, up = (_unsharded(part[ADAPTER].weight) for part in (module.lora_A, module.lora_B))
    return base + module.scaling[ADAPTER] * (up @ down).to(base.dtype)


def _unsharded(parameter: Any) -> Tensor:
    return parameter.full_tensor() if hasattr(parameter, "placements") else parameter
