"""From a batch to its loss: the one path that training and evaluation share."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qwen3llada.corpus.collate import Batch
from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.evaluation.batch_source import LossSettings
from qwen3llada.modeling.attention import attention_bias, block_mask

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
        if self.policy == "full" and prepared.valid is None:
            return None
        build = block_mask if self.implementation == "flex_attention" else attention_bias
        special = {} if build is block_mask else {"dtype": torch.bool}
        return build(
            self.policy,
            prepared.prompt_lengths,
            prepared.noisy.shape[1],
            self.block_length,
            prepared.valid,
            **special,  # type: ignore[arg-type]
        )


def batch_loss(settings: LossSettings, mask_token_id: int, device: torch.device) -> BatchLoss:
    """The loss that the knobs of a training section describe."""
    attention = settings.attention
    return BatchLoss(
        loss_impl=settings.loss_impl,
        smoothing=settings.loss_smoothing,
        reweight_cap=settings.noise.reweight_cap,
        mask_token_id=mask_token_id,
        policy=attention.policy,
        block_length=attention.block_length,
        implementation=resolve_implementation(getattr(attention, "implementation", "auto"), attention.policy, device),
    )


def to_device(prepared: Prepared, device: torch.device) -> Prepared:
    """The tensors on `device`, through page-locked memory where that lets the host go on at once."""
    if device.type == "cpu":
        return prepared
    pin = device.type == "cuda"
    moved = [t if t is None else (t.pin_memory() if pin else t).to(device, non_blocking=pin) for t in prepared]
    return Prepared._make(moved)


def resolve_implementation(implementation: str, policy: str, device: torch.device) -> str:
    """The attention kernel that "auto" stands for."""
    if implementation != "auto":
        return implementation
    return "flex_attention" if device.type == "cuda" and policy != "full" else "sdpa"


def attention_kernel(device: torch.device) -> AbstractContextManager:
    """Which of torch's scaled-dot-product kernels are tried, in order."""
    if device.type != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([getattr(SDPBackend, name) for name in SDPA_PRIORITY], set_priority=True)
