"""The longest sequence that a step on one card holds, by the memory estimate: `python -m bench.context` prints a table.

Nothing is run: the models have the shapes of Qwen3 and no weights.
"""

from pathlib import Path
from typing import Any

import torch

from bench import scale_models
from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM
from qwen3llada.params import load
from qwen3llada.training.run_params import RunParams
from qwen3llada.training.start.memory_estimate import GIB, estimate_memory

ROOT = Path(__file__).parents[1]
CARDS = {"80 GB": 79.6, "141 GB": 139.8}  # GiB that torch reports
USABLE = 0.93  # the rest is taken by CUDA, libraries and fragmentation
POLICIES = ("block_causal", "full")
STEP = 1024
SHAPES = {f"qwen3-{size}": shape for size, shape in scale_models.SHAPES.items()}


def model_of(name: str) -> Any:
    """A model of the size of the parameter set `name`, without memory for its weights."""
    return model_of_size(*SHAPES[name])


def model_of_size(hidden: int, intermediate: int, layers: int, heads: int, tied: bool) -> Any:
    """A model with Qwen3's vocabulary and key heads, without memory for its weights. Sizes as in `scale_models`."""
    config = Qwen3LLadaConfig(
        vocab_size=151936,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=tied,
        mask_token_id=0,
    )
    with torch.device("meta"):
        return Qwen3LLadaForMaskedLM(config)


def longest(params: RunParams, model: Any, usable: float) -> int:
    """Tokens of the longest sequence, in steps of 1024, with which a step stays below `usable` bytes; 0 if none."""

    def fits(steps: int) -> bool:
        longer = params.model_copy(update={"max_length": steps * STEP})
        return estimate_memory(longer, model, shards=1, device="cuda", compiled=True).total <= usable

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * STEP


def row(name: str) -> list[str]:
    """The cells of one parameter set: for each card and policy, the longest sequence."""
    params = load(ROOT / "params.yaml", ROOT / f"configs/{name}.yaml").pretrain
    params = params.model_copy(update={"micro_batch_size": 1, "gradient_checkpointing": True})
    model = model_of(name).to(getattr(torch, params.param_dtype))
    cells = [f"`{name}`"]
    for gib in CARDS.values():
        for policy in POLICIES:
            attention = params.attention.model_copy(update={"policy": policy})
            cells.append(f"{longest(params.model_copy(update={'attention': attention}), model, USABLE * gib * GIB):,}")
    return cells


def table() -> str:
    titles = ["set", *(f"{card}, `{policy}`" for card in CARDS for policy in POLICIES)]
    lines = [titles, ["---"] * len(titles), *map(row, SHAPES)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    print(table())
