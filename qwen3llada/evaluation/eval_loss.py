"""Held-out loss: the training loss on data that was not trained on, with the same noise each time."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qwen3llada.batches.samples import Spread
from qwen3llada.batches.settings import batch_settings
from qwen3llada.batches.source import Source, Step
from qwen3llada.corpus.tokens.mapped_tokens import load_tokens
from qwen3llada.corpus.tokens.tokenizer import check_data, load_tokenizer
from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.errors import InputError
from qwen3llada.evaluation.params import EvalLossParams
from qwen3llada.modeling.loading import check_is_ours, load_pretrained
from qwen3llada.modeling.params import store_attention
from qwen3llada.objective.attention_kernels import resolve_implementation
from qwen3llada.objective.batch_loss import BatchLoss, batch_loss
from qwen3llada.objective.last_layer import shorten_last_layer
from qwen3llada.objective.loss_by_level import BUCKETS, bucket_sums, by_noise_level
from qwen3llada.objective.objective import MaskedDiffusionObjective
from qwen3llada.objective.params import LossKnobs

DETAIL_KEYS = ("loss", "loss_impl", "by_noise_level", "samples")  # of `evaluate_model`; the rest compares models


@dataclass(frozen=True)
class HeldOutSums:
    """Sums over held-out batches: [weighted loss, CE by noise level [10], their counts [10]], and the denominators."""

    sums: Tensor
    denominator: float  # of all processes already

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> "HeldOutSums":
        """Over all processes."""
        return HeldOutSums(reduce(self.sums), self.denominator)

    def means(self) -> tuple[float, dict[str, float]]:
        """The loss, and the unweighted cross-entropy by noise level."""
        loss, *levels = self.sums.tolist()
        return loss / max(1.0, self.denominator), by_noise_level(levels[:BUCKETS], levels[BUCKETS:])


@torch.no_grad()
def held_out_sums(objective: nn.Module, steps: Iterable[Step], loss: BatchLoss) -> HeldOutSums:
    """The sums of a loss over the batches of `steps`, by the path that training takes.

    The objective is left in training mode if it was in it.
    """
    sums, denominator = torch.zeros(1 + 2 * BUCKETS, device=loss.device), 0.0
    training = objective.training
    objective.eval()
    for step in steps:
        denominator += loss.denominator(step)
        for batch in step.micro_batches:
            found = loss(objective, batch)
            sums += torch.cat([found.total.float()[None], bucket_sums(found).flatten()])
    objective.train(training)
    return HeldOutSums(sums, denominator)


def evaluate_model(model: Path, data: Path, knobs: LossKnobs, params: EvalLossParams, *, seed: int) -> dict[str, Any]:
    """Held-out losses of a saved model: the one in use, and every other, on the same noisy batches.

    Args:
        model: folder of the model. data: folder with heldout/. knobs: the training section of the loss in use. Its
            noise is not used: the same noise for all makes models comparable that were trained under different noise.

    Returns: {"loss": of the loss in use, each loss by name, "by_noise_level": …, "samples": …}.
    Raises: InputError if the model or the data are missing, do not belong together, or give a loss that is no number.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_is_ours(model)
    tokenizer = load_tokenizer(model)
    dataset = Spread(load_tokens(data / "heldout"), params.samples)
    layout = {"seed": seed, "micro_batch_size": params.micro_batch_size}
    source = Source(dataset, batch_settings(knobs, tokenizer, training=False, noise=params.noise, **layout))
    language_model = load_pretrained(
        model,
        # Left to itself, Transformers takes the checkpoint's type, and a bfloat16 one would be measured in bfloat16.
        dtype="auto" if params.bf16 else torch.float32,
        attn_implementation=resolve_implementation(knobs.attention, device),
    )
    check_data(data / "heldout", tokenizer, language_model.config.prompt_template)
    store_attention(language_model.config, knobs.attention)
    used = batch_loss(knobs, tokenizer, language_model.config, device)
    shorten_last_layer(language_model)
    objective = MaskedDiffusionObjective(language_model).to(device)

    results: dict[str, Any] = {}
    for name, masked_loss in LOSSES.items():
        steps = (step for round_ in range(params.rounds) for step in source.steps(round_))
        with torch.autocast(device.type, torch.bfloat16, enabled=params.bf16):
            sums = held_out_sums(objective, steps, replace(used, masked_loss=masked_loss))
        results[name], levels = sums.means()
        if not math.isfinite(results[name]):
            raise InputError(f"{model}: its held-out {name} loss is {results[name]}, not a finite number")
        if name == knobs.loss_impl:
            results["by_noise_level"] = levels
    return {"loss": results[knobs.loss_impl], "loss_impl": knobs.loss_impl, **results, "samples": len(dataset)}
