"""From a batch to its loss: the one path that training and evaluation share."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qwen3llada.batches.batch import Batch
from qwen3llada.batches.source import Step
from qwen3llada.diffusion.corruption import Noised
from qwen3llada.diffusion.levels import by_position
from qwen3llada.diffusion.losses import LOSSES, MaskedLoss
from qwen3llada.errors import InputError
from qwen3llada.modeling.attention import POLICIES, blocks_of_columns, mask_of_each_kind, plan
from qwen3llada.modeling.masks import Columns, blocks_of_copies, dense_mask, flex_mask, mask_of_shape
from qwen3llada.objective.attention_kernels import (
    FLASH_ATTENTION_4,
    FallBacks,
    attention_kernel,
    resolve_implementation,
)
from qwen3llada.objective.copies import Copies, copies, views_of
from qwen3llada.objective.params import KernelParams, LossKnobs
from qwen3llada.objective.prepared import Prepared, to_device

TILE = 128  # columns, of FlexAttention


class LossSum(NamedTuple):
    """The loss of a micro-batch, not yet divided by the denominator of its step."""

    total: Tensor  # scalar: the sum of weight times cross-entropy
    cross_entropy: Tensor  # [N], unweighted, unsmoothed and detached, at the corrupted positions
    prepared: Prepared  # on the device
    figures: Tensor | None = None  # [F], what else is measured, divided likewise; named by `BatchLoss.figure_names`


@dataclass(frozen=True, kw_only=True)
class BatchLoss:
    """How a batch becomes a loss: which loss, who sees whom, which attention kernel, on which device.

    The loss of a step is the sum of `BatchLoss(objective, batch).total` over its micro-batches and processes, divided
    by `BatchLoss.denominator(step)`.
    """

    masked_loss: MaskedLoss
    smoothing: float  # of losses that are smoothed
    mask_token_id: int
    attention: KernelParams
    config: Any  # the model's: how many layers it has, and of which types
    implementation: str
    document_end: int | None  # the token that ends a document, where attention is kept within documents
    pad_to_multiple_of: int
    device: torch.device
    shortened: bool = False  # whether the model's last layer takes fewer columns (`shorten_last_layer`)
    fall_backs: FallBacks = field(default_factory=FallBacks, compare=False)

    @property
    def figure_names(self) -> tuple[str, ...]:
        """Names of `LossSum.figures`."""
        return ()

    def __call__(self, objective: nn.Module, batch: Batch) -> LossSum:
        """`objective`, a `MaskedDiffusionObjective` or what wraps it, on the micro-batch. Waits for no device."""
        prepared = to_device(self.prepare(batch), self.device)
        smoothing = self.smoothing if self.masked_loss.smoothed else 0.0
        total, cross_entropy = self.compute(objective, prepared, smoothing=smoothing, return_per_token=True)
        return LossSum(total, cross_entropy, prepared)

    def compute(self, objective: nn.Module, prepared: Prepared, **wanted: Any) -> tuple[Tensor, Tensor]:
        """`objective` on a prepared micro-batch. `wanted`: its arguments that say what to return."""
        mask = self.attention_mask(prepared)
        with attention_kernel(self.device):
            return objective(
                prepared.tokens,
                prepared.targets,
                prepared.token_weights,
                positions=prepared.positions,
                attention_mask=mask,
                last_layer_mask=self._last_layer_mask(prepared, mask),
                position_ids=prepared.position_ids,
                **wanted,
            )

    def denominator(self, step: Step) -> float:
        """What the summed loss of the whole step, over all micro-batches and processes, is divided by."""
        return step.denominator(self.masked_loss)

    def prepare(self, batch: Batch) -> Prepared:
        """The tensors that the objective needs, where the batch is: on the CPU, so that no device is waited for."""
        causal, views = self.attention.causal, views_of(batch)
        layout = copies(batch, causal=causal, document_end=self.document_end, multiple=self.pad_to_multiple_of)
        weights = layout.of_views([self._weights(batch, view) / len(views) for view in views])
        positions = weights.flatten().nonzero().squeeze(1)
        shape = batch.tokens.shape
        of_each = [t for t in (batch.t, batch.t_complement) if t is not None]
        levels = [by_position(t, shape, "t").expand(shape) for t in of_each]
        alike = causal and layout.source is None and layout.documents is None
        return Prepared(
            tokens=layout.tokens,
            targets=layout.of_views([batch.tokens] * len(views)),
            token_weights=weights,
            positions=positions,
            levels=layout.of_views(levels).flatten()[positions],
            position_ids=layout.position_ids,
            blocks=None if layout.position_ids is None or alike else layout.position_ids // layout.block_length,
            valid=layout.valid,
            prompt_lengths=layout.prompt_lengths,
            documents=layout.documents,
            corrupted=layout.corrupted,
            views=layout.views,
            block_length=layout.block_length,
            pairs=self._pairs(layout),
        )

    def _pairs(self, layout: Copies) -> int:
        """FlexAttention skips what no query sees, but for the rest of a tile; the other kernels multiply all pairs."""
        rows, length = layout.tokens.shape
        if self.implementation != "flex_attention" or layout.position_ids is None:
            return rows * length * length
        names = plan(self.attention.policy, self.config.num_hidden_layers)
        ends = (layout.position_ids // layout.block_length + 1) * layout.block_length
        windowed = ends.clamp(max=(self.attention.window_blocks + 1) * layout.block_length)
        seen = [int((windowed if POLICIES[name].windowed else ends).sum()) for name in dict.fromkeys(names)]
        by_name = dict(zip(dict.fromkeys(names), seen, strict=True))
        return sum(by_name[name] for name in names) * (rows // len(layout.position_ids)) // len(names)

    def _weights(self, batch: Batch, view: Noised) -> Tensor:
        """The weight of each position's cross-entropy [B, L] in one view."""
        return self.masked_loss.token_weights(
            batch.tokens,
            view,
            mask_token_id=self.mask_token_id,
            valid=batch.valid if batch.padded else None,
            prompt_lengths=batch.prompt_lengths,
            reweight_cap=batch.step.reweight_cap,
        )

    def attention_mask(self, prepared: Prepared) -> Any:
        """The mask in the form that the kernel takes, by type of layer where these differ; None where all see all."""
        policy = self.attention.policy
        if policy == "full" and prepared.valid is None and prepared.documents is None:
            return None
        window, flex = self.attention.window_blocks, self.implementation == "flex_attention"
        if self.attention.causal and prepared.blocks is None and prepared.valid is None:
            sizes = (prepared.corrupted, prepared.views, prepared.tokens.shape[1], prepared.block_length)
            return mask_of_each_kind(
                policy, self.config, lambda name: mask_of_shape(name, window, *sizes, flex, prepared.tokens.device)
            )
        if self.attention.implementation == FLASH_ATTENTION_4:
            self.fall_backs.count()
        columns = self._columns(prepared)
        rows = len(prepared.tokens)

        def mask_of(name: str) -> Any:
            return flex_mask(name, columns, window, rows) if flex else dense_mask(name, columns, window)

        return mask_of_each_kind(policy, self.config, mask_of)

    def _last_layer_mask(self, prepared: Prepared, mask: Any) -> Any:
        """The mask of the predicted columns in the last layer, where that is worth another mask; else None.

        A `BlockMask` of its own is made once for a shape, and would cost too much for each batch.
        """
        predicted, device = prepared.targets.shape[1], prepared.tokens.device
        if not self.shortened or not prepared.corrupted:
            return None
        own = mask[self.config.layer_types[-1]] if isinstance(mask, dict) else mask
        if isinstance(own, Tensor):
            return own[:, :, :predicted]
        if prepared.blocks is not None or prepared.valid is not None or predicted % TILE:
            return None
        sizes = (prepared.corrupted, prepared.views, prepared.tokens.shape[1], prepared.block_length)
        name = plan(self.attention.policy, self.config.num_hidden_layers)[-1]
        return mask_of_shape(name, self.attention.window_blocks, *sizes, True, device, queries=predicted)

    def _columns(self, prepared: Prepared) -> Columns:
        blocks = prepared.blocks
        if blocks is None and self.attention.causal:
            first_clean = prepared.corrupted * prepared.views
            blocks = blocks_of_copies(
                prepared.corrupted,
                prepared.views,
                prepared.tokens.shape[1] - first_clean,
                prepared.block_length,
                prepared.tokens.device,
            )
        elif blocks is None:
            length = prepared.tokens.shape[1]
            blocks = blocks_of_columns(
                "block", prepared.prompt_lengths, length, prepared.block_length, prepared.documents
            )
        return Columns(
            blocks=blocks,
            documents=prepared.documents,
            valid=prepared.valid,
            corrupted=prepared.corrupted,
            views=prepared.views,
        )


def batch_loss(knobs: LossKnobs, tokenizer: Any, config: Any, device: torch.device) -> BatchLoss:
    """The loss that the knobs of a training section describe, for a model of that `config`, its last layer shortened.

    Raises: InputError if attention is to be kept within documents and the tokenizer has no EOS, which ends them.
    """
    attention = knobs.attention
    if attention.keeps_within_documents and tokenizer.eos_token_id is None:
        raise InputError("attention.within_documents must be false: the tokenizer has no EOS to end a document")
    return BatchLoss(
        masked_loss=LOSSES[knobs.loss_impl],
        smoothing=knobs.loss_smoothing,
        mask_token_id=tokenizer.mask_token_id,
        attention=attention,
        config=config,
        implementation=resolve_implementation(attention, device),
        document_end=tokenizer.eos_token_id if attention.keeps_within_documents else None,
        pad_to_multiple_of=knobs.pad_to_multiple_of,
        device=device,
        shortened=True,
    )
