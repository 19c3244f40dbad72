"""Optimiser steps over the same 16 samples, split in different ways. A module, so that processes can import it."""

from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM
from qwen3llada.batches.loader import make_loader
from qwen3llada.batches.samples import Sample
from qwen3llada.batches.settings import BatchSettings
from qwen3llada.diffusion.corruption import NoiseParams
from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.objective.objective import MaskedDiffusionObjective

SAMPLES, VOCAB, MASK = 16, 67, 66
SMOOTHING, CAP = 0.1, 4.0
TASKS = ("pretraining", "sft")
WRAPPERS = ("ddp", "fsdp2")


class Texts:
    """16 random texts of 2 to 12 tokens. In SFT the first tokens, from none to all but one, are the prompt."""

    def __init__(self, task):
        generator = np.random.default_rng(1)
        self.lengths = generator.integers(2, 13, SAMPLES)
        self.texts = [generator.integers(0, MASK, length) for length in self.lengths]
        self.prompts = [int(generator.integers(0, n)) if task == "sft" else None for n in self.lengths]

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return Sample(self.texts[index], self.prompts[index])


def make_model(tied=True, **changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen3LLadaConfig(
        vocab_size=VOCAB, mask_token_id=MASK, tie_word_embeddings=tied, **{**sizes, **heads, **changes}
    )
    model = Qwen3LLadaForMaskedLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))  # initially, a model hardly depends on its input
    return model


def batches(task, micro_batch_size, accumulation, **processes):
    """The micro-batches of one step of all 16 samples, with one in three pretraining texts cut short."""
    noise = NoiseParams(random_length_prob=0.3, reweight_cap=CAP)
    cut = {"micro_batch_size": micro_batch_size, "gradient_accumulation_steps": accumulation}
    return make_loader(Texts(task), BatchSettings(noise=noise, seed=3, mask_token_id=MASK, **cut, **processes), epoch=0)


def weights(loss, batch):
    return LOSSES[loss].token_weights(
        batch.tokens,
        batch.noised,
        mask_token_id=MASK,
        valid=batch.valid,
        prompt_lengths=batch.prompt_lengths,
        reweight_cap=CAP,
    )


def step(objective, loss, loader, processes=1):
    """Gradients of a whole step, left in the parameters. Wrappers average over ranks."""
    for batch in loader:
        total = objective(
            batch.noised.tokens,
            batch.tokens,
            weights(loss, batch),
            attention_mask=batch.valid.long(),
            smoothing=SMOOTHING if LOSSES[loss].smoothed else 0.0,
        )
        (total * processes / batch.step.denominator(LOSSES[loss])).backward()


def gradients(model):
    return {name.removeprefix("module."): parameter.grad.clone() for name, parameter in model.named_parameters()}


def wrap(objective, wrapper):
    if wrapper == "ddp":
        return DistributedDataParallel(objective)
    mesh = init_device_mesh("cpu", (2,))  # by itself FSDP2 takes GPUs where there are any
    for layer in objective.model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(objective, mesh=mesh)


def work(rank, folder):
    """Run by each of two ranks: every wrapper, loss and task once. Rank 0 writes the gradients to `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    results = {}
    for wrapper in WRAPPERS:
        for task in TASKS:
            for loss in LOSSES:
                objective = wrap(MaskedDiffusionObjective(make_model()), wrapper)
                step(objective, loss, batches(task, 2, 4, num_processes=2, process_index=rank), processes=2)
                found = gradients(objective)
                if wrapper == "fsdp2":
                    found = {name: gradient.full_tensor() for name, gradient in found.items()}
                results[wrapper, task, loss] = found
    for wrapper in WRAPPERS:
        with one_gradient_everywhere():
            objective = wrap(MaskedDiffusionObjective(make_model()), wrapper)
            step(objective, "soft_ce", batches("sft", 2, 4, num_processes=2, process_index=rank), processes=2)
        found = gradients(objective)
        results["one gradient", wrapper] = {
            name: gradient.full_tensor() if wrapper == "fsdp2" else gradient for name, gradient in found.items()
        }
    results["empty"] = one_process_without_corruption(rank)
    results["sharded head"] = head_in_a_group_of_its_own()
    if rank == 0:
        torch.save(results, Path(folder) / "gradients.pt")
    dist.barrier()
    dist.destroy_process_group()


@contextmanager
def one_gradient_everywhere():
    """Lets a CPU compute the gradient of tied embeddings as a GPU does, and asserts that it did. Yields the uses."""
    uses = []

    def is_worthwhile(embedding, projection):
        tied = embedding.weight is projection and torch.is_grad_enabled()
        uses.extend([embedding] * tied)
        return tied

    with patch("qwen3llada.objective.objective.is_worthwhile", is_worthwhile):
        yield uses
    assert uses


def one_process_without_corruption(rank):
    """DDP gradients if rank 1 has nothing to learn from. It must still take part."""
    objective = wrap(MaskedDiffusionObjective(make_model(tied=False)), "ddp")
    tokens = torch.arange(8).view(1, 8)
    objective(tokens, tokens, torch.full((1, 8), 1.0 - rank)).backward()
    return gradients(objective)


def head_in_a_group_of_its_own():
    """The objective's error message if the projection's weight is sharded."""
    model = make_model(tied=False)
    fully_shard(model.lm_head, mesh=init_device_mesh("cpu", (2,)))
    tokens = torch.arange(8).view(1, 8)
    try:
        MaskedDiffusionObjective(model)(tokens, tokens, torch.ones(1, 8))
    except ValueError as error:
        return str(error)
    return None
