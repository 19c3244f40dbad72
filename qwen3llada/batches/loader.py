"""Micro-batches for training and evaluation, in an order and with noise that depend on (seed, epoch) alone.

An optimiser step takes the next micro batch × accumulation × processes samples of the epoch's order; every process
knows the whole step, and so its denominator, before it computes anything. What a sample looks like does not change with
the number of processes or workers, with how the step is cut into micro-batches, or with a restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qwen3llada.batches.batch import Batch, StepFacts
from qwen3llada.batches.collate import AnswerPadding, Collator
from qwen3llada.batches.samples import Sample, TokenDataset, TokenStream
from qwen3llada.batches.step_plan import Layout, StepPlan, epoch_order, step_plan, steps_per_epoch
from qwen3llada.diffusion.params import NoiseParams
from qwen3llada.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "AnswerPadding",
    "Batch",
    "Layout",
    "Sample",
    "StepFacts",
    "StepPlan",
    "TokenDataset",
    "TokenStream",
    "epoch_order",
    "make_loader",
    "real_token_ids",
    "step_plan",
    "steps_per_epoch",
]


def make_loader(
    source: TokenDataset | TokenStream,
    noise: NoiseParams,
    *,
    seed: int,
    epoch: int,
    mask_token_id: int,
    micro_batch_size: int,
    accumulation: int = 1,
    num_processes: int = 1,
    process_index: int = 0,
    start_step: int = 0,
    cursors: Mapping[int, Any] | None = None,
    bucket: int = 1,
    answer_padding: AnswerPadding = "none",
    block_length: int = 1,
    max_length: int | None = None,
    eos_token_id: int | None = None,
    real_tokens: Tensor | None = None,
    at_least_one: bool = False,
    pad_to_multiple_of: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """The micro-batches of one process from step `start_step` of the epoch on, in order.

    `source`: samples with random access, all of them with a `prompt_length` (SFT) or none, or an endless stream of
    equally long ones. `cursors`, for a stream: what its `needed` left of the `Batch.cursors` of all processes.
    `bucket`: neighbours of similar length (`epoch_order`). `answer_padding`: how far answers that end with EOS are
    continued with `eos_token_id`: not at all, to a multiple of `block_length`, or to the step's longest sample, and
    never beyond `max_length`. `real_tokens` [R]: ids for the noise types that draw some. `at_least_one`: no sample is
    left without a masked position. `pad_to_multiple_of`: batch lengths are multiples of this.
    `num_workers`: processes that make batches ahead; 0: this one does, when asked.
    Raises InputError on values out of range and on combinations that cannot be served.
    """
    import torch
    from torch.utils.data import DataLoader

    from qwen3llada.batches.micro_batches import MicroBatches, StreamMicroBatches

    layout = Layout(
        micro_batch_size=micro_batch_size,
        accumulation=accumulation,
        num_processes=num_processes,
        process_index=process_index,
    )
    collator = Collator(
        noise=noise,
        seed=seed,
        epoch=epoch,
        mask_token_id=mask_token_id,
        sft=isinstance(source, TokenDataset) and len(source) > 0 and source[0].prompt_length is not None,
        real_tokens=real_tokens,
        at_least_one=at_least_one,
        answer_padding=answer_padding,
        block_length=block_length,
        max_length=max_length,
        eos_token_id=eos_token_id,
        pad_to_multiple_of=pad_to_multiple_of,
    )
    batches: MicroBatches | StreamMicroBatches
    if isinstance(source, TokenStream):
        batches = StreamMicroBatches(
            stream=source, layout=layout, collator=collator, start_step=start_step, cursors=cursors or {}
        )
        numbers = None
    else:
        if cursors is not None:
            raise InputError("cursors must be None for a dataset with random access")
        plan = step_plan(source.lengths, seed=seed, epoch=epoch, step_size=layout.step_size, bucket=bucket)
        if not 0 <= start_step <= len(plan):
            raise InputError(f"{start_step=} must be in [0, {len(plan)}], the steps of an epoch")
        batches = MicroBatches(dataset=source, plan=plan, layout=layout, collator=collator)
        numbers = range(start_step * accumulation, len(batches))
    return DataLoader(
        batches,
        sampler=numbers,
        batch_size=None,
        collate_fn=_as_made,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # of its own: a loader would otherwise draw from the global one
    )


def _as_made(batch: Any) -> Any:
    """In place of the loader's own conversion, which would look into the batch."""
    return batch


def real_token_ids(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Ids of the tokens that text consists of, sorted, [R]: no special or added tokens, no rows without a token."""
    import torch

    added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    return torch.tensor(sorted(set(tokenizer.get_vocab().values()) - added))
