"""From a batch to its loss: the one path that training and evaluation share."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qwen3llada.batches.batch import Batch
from qwen3llada.batches.source import Step
from qwen3llada.diffusion.corruption import by_position
from qwen3llada.diffusion.losses import LOSSES, MaskedLoss
from qwen3llada.errors import InputError
from qwen3llada.modeling.attention import attention_bias, block_mask, document_numbers
from qwen3llada.objective.params import KernelParams, LossKnobs

# On Hopper cuDNN's kernel is the fastest, elsewhere flash attention's; both are exact. The first that can run is taken.
SDPA_PRIORITY = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")


class Prepared(NamedTuple):
    """What the objective needs of a micro-batch of B rows and L columns, N of its positions corrupted."""

    noisy: Tensor  # [B, L] int64
    targets: Tensor  # [B, L] int64
    token_weights: Tensor  # [B, L] float32, before division by the step's denominator
    positions: Tensor  # [N] int64, corrupted ones in the flattened [B, L]
    levels: Tensor  # [N] float32, noise level t of each
    valid: Tensor | None  # [B, L] bool, None where there is no padding
    prompt_lengths: Tensor  # [B] int64
    documents: Tensor | None  # [B, L] int64, numbers of documents; None where attention does not stop at their ends


class LossSum(NamedTuple):
    """The loss of a micro-batch, not yet divided by the denominator of its step."""

    total: Tensor  # scalar: the sum of weight times cross-entropy
    cross_entropy: Tensor  # [N], unweighted, unsmoothed and detached, at the corrupted positions
    prepared: Prepared  # on the device


@dataclass(frozen=True, kw_only=True)
class BatchLoss:
    """How a batch becomes a loss: which loss, who sees whom, which attention kernel, on which device.

    The loss of a step is the sum of `BatchLoss(objective, batch).total` over its micro-batches and processes, divided
    by `BatchLoss.denominator(step)`.
    """

    masked_loss: MaskedLoss
    smoothing: float  # of losses that are smoothed
    reweight_cap: float | None
    mask_token_id: int
    policy: str
    block_length: int
    implementation: str
    document_end: int | None  # the token that ends a document, where attention is kept within documents
    device: torch.device

    def __call__(self, objective: nn.Module, batch: Batch) -> LossSum:
        """`objective`, a `MaskedDiffusionObjective` or what wraps it, on the micro-batch. Waits for no device."""
        prepared = to_device(self.prepare(batch), self.device)
        with attention_kernel(self.device):
            total, cross_entropy = objective(
                prepared.noisy,
                prepared.targets,
                prepared.token_weights,
                positions=prepared.positions,
                attention_mask=self.attention_mask(prepared),
                smoothing=self.smoothing if self.masked_loss.smoothed else 0.0,
                return_per_token=True,
            )
        return LossSum(total, cross_entropy, prepared)

    def denominator(self, step: Step) -> float:
        """What the summed loss of the whole step, over all micro-batches and processes, is divided by."""
        return step.denominator(self.masked_loss)

    def prepare(self, batch: Batch) -> Prepared:
        """The tensors that the objective needs, where the batch is: on the CPU, so that no device is waited for."""
        valid, prompts = batch.valid if batch.padded else None, batch.prompt_lengths
        weights = self.masked_loss.token_weights(
            batch.tokens,
            batch.noised,
            mask_token_id=self.mask_token_id,
            valid=valid,
            prompt_lengths=prompts,
            reweight_cap=self.reweight_cap,
        )
        positions = weights.flatten().nonzero().squeeze(1)
        levels = by_position(batch.t, batch.tokens.shape, "t").expand(batch.tokens.shape)
        return Prepared(
            noisy=batch.noised.tokens,
            targets=batch.tokens,
            token_weights=weights,
            positions=positions,
            levels=levels.flatten()[positions],
            valid=valid,
            prompt_lengths=torch.zeros(len(batch.tokens), dtype=torch.long) if prompts is None else prompts,
            documents=None if self.document_end is None else document_numbers(batch.tokens, self.document_end),
        )

    def attention_mask(self, prepared: Prepared) -> Any:
        """The mask in the form that the kernel takes; None where all see all."""
        if self.policy == "full" and prepared.valid is None and prepared.documents is None:
            return None
        build = block_mask if self.implementation == "flex_attention" else attention_bias
        special: dict[str, Any] = {} if build is block_mask else {"dtype": torch.bool}
        return build(
            self.policy,
            prepared.prompt_lengths,
            prepared.noisy.shape[1],
            self.block_length,
            prepared.valid,
            documents=prepared.documents,
            **special,
        )


def batch_loss(knobs: LossKnobs, tokenizer: Any, device: torch.device) -> BatchLoss:
    """The loss that the knobs of a training section describe.

    Raises: InputError if attention is to be kept within documents and the tokenizer has no EOS, which ends them.
    """
    attention = knobs.attention
    if attention.keeps_within_documents and tokenizer.eos_token_id is None:
        raise InputError("attention.within_documents must be false: the tokenizer has no EOS to end a document")
    return BatchLoss(
        masked_loss=LOSSES[knobs.loss_impl],
        smoothing=knobs.loss_smoothing,
        reweight_cap=knobs.noise.reweight_cap,
        mask_token_id=tokenizer.mask_token_id,
        policy=attention.policy,
        block_length=attention.block_length,
        implementation=resolve_implementation(attention, device),
        document_end=tokenizer.eos_token_id if attention.keeps_within_documents else None,
        device=device,
    )


def to_device(prepared: Prepared, device: torch.device) -> Prepared:
    """The tensors on `device`, through page-locked memory where that lets the host go on at once."""
    if device.type == "cpu":
        return prepared
    pin = device.type == "cuda"
    moved = [t if t is None else (t.pin_memory() if pin else t).to(device, non_blocking=pin) for t in prepared]
    return Prepared._make(moved)


def resolve_implementation(attention: KernelParams, device: torch.device) -> str:
    """The attention kernel that is asked for, or that "auto" stands for."""
    if attention.implementation != "auto":
        return attention.implementation
    everything = attention.policy == "full" and not attention.keeps_within_documents
    return "sdpa" if everything or device.type != "cuda" else "flex_attention"


def attention_kernel(device: torch.device) -> AbstractContextManager:
    """Which of torch's scaled-dot-product kernels are tried, in order."""
    if device.type != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([getattr(SDPBackend, name) for name in SDPA_PRIORITY], set_priority=True)
