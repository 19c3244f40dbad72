"""From a batch to its loss: the one path that training and evaluation share."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qwen3llada.batches.collate import Batch
from qwen3llada.batches.source import LossSettings
from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.errors import InputError
from qwen3llada.modeling.attention import AttentionParams, attention_bias, document_numbers
from qwen3llada.modeling.masks import block_mask

# On Hopper cuDNN's kernel is the fastest, elsewhere flash attention's; both are exact. The first that can run is taken.
SDPA_PRIORITY = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")


class Prepared(NamedTuple):
    """What the objective needs of a micro-batch of B rows and L columns, N of its positions corrupted."""

    noisy: Tensor  # [B, L] int64
    targets: Tensor  # [B, L] int64
    token_weights: Tensor  # [B, L] float32, before division by the step's denominator
    positions: Tensor  # [N] int64, corrupted ones in the flattened [B, L]
    rows: Tensor  # [N] int64, the row of each
    valid: Tensor | None  # [B, L] bool, None where there is no padding
    prompt_lengths: Tensor  # [B] int64
    levels: Tensor  # [B] float32, noise level t
    documents: Tensor | None  # [B, L] int64, numbers of documents; None where attention does not stop at their ends


@dataclass(frozen=True, kw_only=True)
class BatchLoss:
    """How a batch becomes a loss: which loss, who sees whom, which attention kernel."""

    loss_impl: str
    smoothing: float
    reweight_cap: float | None
    mask_token_id: int
    policy: str
    block_length: int
    implementation: str
    document_end: int | None  # the token that ends a document, where attention is kept within documents

    def prepare(self, batch: Batch) -> Prepared:
        """The tensors that the objective needs, where the batch is: on the CPU, so that no device is waited for."""
        weights = LOSSES[self.loss_impl].token_weights(
            batch.tokens,
            batch.noised,
            mask_token_id=self.mask_token_id,
            valid=batch.valid if batch.padded else None,
            prompt_lengths=batch.prompt_lengths,
            reweight_cap=self.reweight_cap,
        )
        positions = weights.flatten().nonzero().squeeze(1)
        prompts = batch.prompt_lengths
        return Prepared(
            noisy=batch.noised.tokens,
            targets=batch.tokens,
            token_weights=weights,
            positions=positions,
            rows=positions // batch.tokens.shape[1],
            valid=batch.valid if batch.padded else None,
            prompt_lengths=torch.zeros(len(batch.tokens), dtype=torch.long) if prompts is None else prompts,
            levels=batch.t,
            documents=None if self.document_end is None else document_numbers(batch.tokens, self.document_end),
        )

    def __call__(self, objective: nn.Module, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """Sum of weighted losses (scalar) and the unweighted cross-entropies [N], detached; all on one device."""
        with attention_kernel(prepared.noisy.device):
            return objective(
                prepared.noisy,
                prepared.targets,
                prepared.token_weights,
                positions=prepared.positions,
                attention_mask=self.attention_mask(prepared),
                smoothing=self.smoothing if LOSSES[self.loss_impl].smoothed else 0.0,
                return_per_token=True,
            )

    def denominator(self, batch: Batch) -> float:
        """What the summed loss of the batch's whole step is divided by; at least 1, for a step without a token."""
        return max(1.0, batch.step_denominator(LOSSES[self.loss_impl]))

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


def batch_loss(settings: LossSettings, tokenizer: Any, device: torch.device) -> BatchLoss:
    """The loss that the knobs of a training section describe.

    Raises: InputError if attention is to be kept within documents and the tokenizer has no EOS, which ends them.
    """
    attention = settings.attention
    if keeps_within_documents(attention) and tokenizer.eos_token_id is None:
        raise InputError("attention.within_documents must be false: the tokenizer has no EOS to end a document")
    return BatchLoss(
        loss_impl=settings.loss_impl,
        smoothing=settings.loss_smoothing,
        reweight_cap=settings.noise.reweight_cap,
        mask_token_id=tokenizer.mask_token_id,
        policy=attention.policy,
        block_length=attention.block_length,
        implementation=resolve_implementation(attention, device),
        document_end=tokenizer.eos_token_id if keeps_within_documents(attention) else None,
    )


def to_device(prepared: Prepared, device: torch.device) -> Prepared:
    """The tensors on `device`, through page-locked memory where that lets the host go on at once."""
    if device.type == "cpu":
        return prepared
    pin = device.type == "cuda"
    moved = [t if t is None else (t.pin_memory() if pin else t).to(device, non_blocking=pin) for t in prepared]
    return Prepared._make(moved)


def keeps_within_documents(attention: AttentionParams) -> bool:
    """Whether attention stops at the end of a document: a knob of pretraining alone."""
    return getattr(attention, "within_documents", False)


def resolve_implementation(attention: AttentionParams, device: torch.device) -> str:
    """The attention kernel that is asked for, or that "auto" stands for."""
    asked = getattr(attention, "implementation", "auto")
    if asked != "auto":
        return asked
    everything = attention.policy == "full" and not keeps_within_documents(attention)
    return "sdpa" if everything or device.type != "cuda" else "flex_attention"


def attention_kernel(device: torch.device) -> AbstractContextManager:
    """Which of torch's scaled-dot-product kernels are tried, in order."""
    if device.type != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([getattr(SDPBackend, name) for name in SDPA_PRIORITY], set_priority=True)
