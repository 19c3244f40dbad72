"""The recipes that `bench.recipes` compares: the base, and what differs from it in each of the others.

A factor is one subject (attention, block length, noise level …). Each recipe changes one thing of the base, so that two
results differ by it alone. `rows` scales the micro-batch, so that recipes with more copies of a sample fit the device.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Differences from the base. A recipe whose values the base has already is left out of a comparison."""

    factor: str
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the training section, nested as in params.yaml
    rows: float = 1.0  # micro_batch_size, relative to the base's
    start: str = "pretrained"  # what the weights are at the beginning: an entry of `recipe_run.STARTS`
    after: str = BASE  # fine-tuning: the pretraining recipe whose model it starts from


def noise(**knobs: Any) -> dict[str, Any]:
    return {"noise": knobs}


def optim(**knobs: Any) -> dict[str, Any]:
    return {"optim": knobs}


def attention(**knobs: Any) -> dict[str, Any]:
    return {"attention": knobs}


def _lengths(*blocks: int) -> list[dict[str, float]]:
    """A schedule of block lengths: the first half of the run in equal parts, the last length for the other half."""
    early = len(blocks) - 1
    ends = [0.5 * (number + 1) / early for number in range(early)] + [1.0]
    return [{"until": round(end, 4), "block_length": length} for end, length in zip(ends, blocks, strict=True)]


SHORT_FIRST = attention(block_schedule=_lengths(4, 8, 16, 32))
EASY_FIRST = noise(stages=[{"until": 0.3, "t_range": [0.0, 0.5]}, {"until": 1.0}])

#: Pretraining. "attention" and "blocks" measure other bounds: a shorter block makes the bound itself lower.
PRETRAIN: dict[str, Recipe] = {
    BASE: Recipe(factor=BASE),
    "full": Recipe(factor="attention", changes=attention(policy="full"), rows=2),
    "window of 4 blocks": Recipe(factor="attention", changes=attention(policy="window", window_blocks=4)),
    "blocks of 4": Recipe(factor="blocks", changes=attention(block_length=4)),
    "blocks of 8": Recipe(factor="blocks", changes=attention(block_length=8)),
    "blocks of 16": Recipe(factor="blocks", changes=attention(block_length=16)),
    "blocks of 64": Recipe(factor="blocks", changes=attention(block_length=64)),
    "blocks of 4, 8, 16, then 32": Recipe(factor="curriculum", changes=SHORT_FIRST),
    "low noise first": Recipe(factor="curriculum", changes=EASY_FIRST),
    "level per sequence": Recipe(factor="level", changes=noise(level="sequence")),
    "two views": Recipe(factor="views", changes=noise(views=2), rows=0.625),
    "t in 0 to 1": Recipe(factor="t_range", changes=noise(t_range=[0.0, 1.0])),
    "t in 0.1 to 0.9": Recipe(factor="t_range", changes=noise(t_range=[0.1, 0.9])),
    "t in 0.3 to 0.8": Recipe(factor="t_range", changes=noise(t_range=[0.3, 0.8])),
    "cosine noise": Recipe(factor="schedule", changes=noise(schedule="cosine")),
    "power noise": Recipe(factor="schedule", changes=noise(schedule="power")),
    "sigmoid noise": Recipe(factor="schedule", changes=noise(schedule="sigmoid")),
    "loss dllm": Recipe(factor="loss", changes={"loss_impl": "dllm"}),
    "loss soft_ce": Recipe(factor="loss", changes={"loss_impl": "soft_ce"}),
    "weight capped at 5": Recipe(factor="loss", changes=noise(reweight_cap=5.0)),
    "lr 3e-4": Recipe(factor="lr", changes=optim(lr=3e-4)),
    "lr 5e-4": Recipe(factor="lr", changes=optim(lr=5e-4)),
    "lr 7e-4": Recipe(factor="lr", changes=optim(lr=7e-4)),
    "lr 1e-3": Recipe(factor="lr", changes=optim(lr=1e-3)),
    "lr 2e-3": Recipe(factor="lr", changes=optim(lr=2e-3)),
    "lr 4e-3": Recipe(factor="lr", changes=optim(lr=4e-3)),
    "no warm-up": Recipe(factor="warm-up", changes=optim(warmup_ratio=0.0)),
    "warm-up of 20 %": Recipe(factor="warm-up", changes=optim(warmup_ratio=0.2)),
    "linear decay": Recipe(factor="scheduler", changes=optim(scheduler="linear")),
    "stable, then decay": Recipe(factor="scheduler", changes=optim(scheduler="warmup_stable_decay")),
    "no weight decay": Recipe(factor="weight decay", changes=optim(weight_decay=0.0)),
    "weight decay 0.3": Recipe(factor="weight decay", changes=optim(weight_decay=0.3)),
    "muon": Recipe(factor="optimiser", changes=optim(name="muon")),
    "muon, lr 3e-3": Recipe(factor="optimiser", changes=optim(name="muon", lr=3e-3)),
    "beta2 0.99": Recipe(factor="betas", changes=optim(betas=[0.9, 0.99])),
    "half the rows": Recipe(factor="batch", rows=0.5),
    "twice the rows": Recipe(factor="batch", rows=2),
    "a tenth cut": Recipe(factor="random_length", changes=noise(random_length_prob=0.1)),
    "documents apart": Recipe(factor="documents", changes=attention(within_documents=True)),
    "hybrid noise": Recipe(factor="noise type", changes=noise(noise_type="hybrid", replace_share=0.1)),
    "random weights": Recipe(factor="start", start="random"),
    "mask as the mean": Recipe(factor="mask embedding", start="mask_mean"),
    "mask as EOS": Recipe(factor="mask embedding", start="mask_eos"),
    "mask at random": Recipe(factor="mask embedding", start="mask_random"),
}

#: Fine-tuning.
SFT: dict[str, Recipe] = {
    BASE: Recipe(factor=BASE),
    "full": Recipe(factor="attention", changes=attention(policy="full"), after="full"),
    "lr 1e-4": Recipe(factor="lr", changes=optim(lr=1e-4)),
    "lr 5e-4": Recipe(factor="lr", changes=optim(lr=5e-4)),
    "two views": Recipe(factor="views", changes=noise(views=2), rows=0.625),
    "level per sequence": Recipe(factor="level", changes=noise(level="sequence")),
    "loss dllm": Recipe(factor="loss", changes={"loss_impl": "dllm"}),
    "t in 0.3 to 0.8": Recipe(factor="t_range", changes=noise(t_range=[0.3, 0.8])),
    "no padding of answers": Recipe(factor="answer padding", changes={"answer_padding": "none"}),
    "hybrid noise": Recipe(factor="noise type", changes=noise(noise_type="hybrid", replace_share=0.1)),
}

RECIPES = {"pretrain": PRETRAIN, "sft": SFT}


def changes_nothing(recipe: Recipe, base: Mapping[str, Any]) -> bool:
    """Whether the base, a training section, has all values of the recipe already."""
    return recipe == Recipe(factor=recipe.factor, changes=recipe.changes) and merged(base, recipe.changes) == base


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, at any depth. Raises ValueError for a key that the base lacks."""
    if unknown := changes.keys() - base.keys():
        raise ValueError(f"{sorted(unknown)} must be among {sorted(base)}")
    return {
        key: merged(value, changes[key]) if key in changes and isinstance(value, Mapping) else changes.get(key, value)
        for key, value in base.items()
    }
