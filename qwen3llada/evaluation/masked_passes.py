"""The forward passes of a likelihood estimate: rows of [sequence in a round], batched by tokens.

Shapes: S sequences, R rounds, B rows of a pass, L columns, N masked positions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3llada.batches.batch import Batch, StepFacts
from qwen3llada.diffusion.corruption import Noised
from qwen3llada.diffusion.losses import MaskedLoss
from qwen3llada.evaluation.fast_body import fast_body
from qwen3llada.evaluation.mask_counts import mask_rounds
from qwen3llada.evaluation.token_batches import token_batches
from qwen3llada.modeling.attention import STORED_ATTENTION, plan
from qwen3llada.modeling.params import store_attention
from qwen3llada.objective.batch_loss import BatchLoss, LossSum
from qwen3llada.objective.loss_by_level import BUCKETS
from qwen3llada.objective.objective import MaskedDiffusionObjective
from qwen3llada.objective.params import KernelParams


@dataclass(frozen=True)
class MaskedPasses:
    """What is to be predicted, and who sees whom. All sequences and settings have been checked."""

    sequences: Sequence[Sequence[int]]
    prompt_lengths: Sequence[int]
    keys: Sequence[int]
    attention: KernelParams
    rounds: int
    seed: int
    mask_token_id: int

    def predicted(self) -> NDArray[np.int64]:
        """Tokens of each sequence that are predicted, [S]."""
        lengths = [len(sequence) for sequence in self.sequences]
        return np.array(lengths, np.int64) - np.array(self.prompt_lengths, np.int64)

    def blocks(self, number: int, layers: int) -> NDArray[np.int64]:
        """The number of the block that each predicted position of a sequence is estimated in, rising."""
        prompt, end = self.prompt_lengths[number], len(self.sequences[number])
        if "full" in plan(self.attention.policy, layers):
            return np.zeros(end - prompt, np.int64)
        first = 0 if self.attention.causal else prompt  # where blocks are counted from
        return (np.arange(prompt, end) - first) // self.attention.block_length

    def columns(self) -> NDArray[np.int64]:
        """Columns of a row of each sequence, [S]: under causal policies [corrupted copy | clean copy]."""
        lengths = np.array([len(sequence) for sequence in self.sequences])
        if not self.attention.causal:
            return lengths
        length = self.attention.block_length
        return 2 * lengths - np.array(self.prompt_lengths) // length * length

    def run(
        self, model: Any, batch_tokens: int, share: tuple[int, int]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Nats of each sequence in each round [S, R], and sums of cross-entropies by noise level [S, R, 2, 10].

        share: (i, n): this is process i of n, counted from 0. It computes the batches i, i + n, i + 2n, …; what the
        others compute is zero here. A row is the same whatever batch it is in, up to the rounding of the products.
        """
        nats = np.zeros((len(self.sequences), self.rounds))
        levels = np.zeros((*nats.shape, 2, BUCKETS))
        batches = token_batches(np.repeat(self.columns(), self.rounds), batch_tokens)[share[0] :: share[1]]
        pending: PassResult | None = None
        with evaluated_with(model, self.attention), fast_body(model), torch.no_grad():
            objective, loss = MaskedDiffusionObjective(model), self._loss(model)
            for rows in batches:
                found = PassResult(rows, loss(objective, self._batch(rows, model.config.num_hidden_layers)))
                if pending is not None:  # entered, and the next batch made, while the device computes this one
                    pending.enter(nats, levels)
                pending = found
            if pending is not None:
                pending.enter(nats, levels)
        return nats, levels

    def _loss(self, model: Any) -> BatchLoss:
        return BatchLoss(
            masked_loss=COUNTED,
            smoothing=0.0,
            mask_token_id=self.mask_token_id,
            attention=self.attention,
            config=model.config,
            implementation=model.config._attn_implementation,
            document_end=None,
            # On a GPU attention reads rows of masks of these lengths without copying them first.
            pad_to_multiple_of=8 if model.device.type == "cuda" else 1,
            device=model.device,
        )

    def _batch(self, rows: NDArray[np.int64], layers: int) -> Batch:
        """The rows with the numbers `rows` [B]: sequence number times R plus round."""
        numbers = rows // self.rounds
        lengths = np.array([len(self.sequences[number]) for number in numbers])
        shape = (len(rows), int(lengths.max()))
        tokens, masked = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
        shares, levels = np.ones(shape, np.float32), np.ones(shape, np.float32)
        for number in dict.fromkeys(numbers.tolist()):  # all rounds of a sequence at once
            chosen = np.flatnonzero(numbers == number)
            rounds, sequence = rows[chosen] % self.rounds, self.sequences[number]
            drawn = mask_rounds(self.blocks(number, layers), self.rounds, seed=self.seed, key=self.keys[number])
            answer = np.arange(self.prompt_lengths[number], len(sequence))
            tokens[chosen, : len(sequence)] = sequence
            masked[np.ix_(chosen, answer)] = drawn.masked[rounds]
            shares[np.ix_(chosen, answer)] = drawn.shares[rounds]
            levels[np.ix_(chosen, answer)] = drawn.levels[rounds]
        valid = np.arange(shape[1]) < lengths[:, None]
        noisy = np.where(masked, self.mask_token_id, tokens)
        prompts = np.array([self.prompt_lengths[number] for number in numbers.tolist()], np.int64)
        return Batch(
            tokens=torch.from_numpy(tokens),
            noised=Noised(torch.from_numpy(noisy), torch.from_numpy(masked), torch.from_numpy(shares)),
            complement=None,
            valid=torch.from_numpy(valid),
            prompt_lengths=torch.from_numpy(prompts) if prompts.any() else None,
            t=torch.from_numpy(levels),
            padded=not valid.all(),
            step=self._facts(lengths),
        )

    def _facts(self, lengths: NDArray[np.int64]) -> StepFacts:
        return StepFacts(
            number=0,
            micro_batch=0,
            micro_batches=1,
            samples=len(lengths),
            tokens=int(lengths.sum()),
            longest=int(lengths.max()),
            sft=bool(any(self.prompt_lengths)),
            block_length=self.attention.block_length,
        )


def _inverse_share(noised: Noised, target: Tensor, **_: Any) -> Tensor:
    """n/l at masked positions [B, L]; `p_mask` holds l/n."""
    return noised.p_by_position.reciprocal() * (noised.masked & target)


# Not an entry of LOSSES: it is no loss to train with, since its sums are of whole sequences.
COUNTED = MaskedLoss(weigh=_inverse_share, weighs_by_inverse_p=True, by_sample=True)


class PassResult:
    """What a pass found of its rows [B]. A GPU sends it as soon as it has it, and the host goes on meanwhile."""

    def __init__(self, rows: NDArray[np.int64], found: LossSum) -> None:
        prepared = found.prepared
        self.rows, self.width = rows, prepared.token_weights.shape[1]
        weights = prepared.token_weights.flatten()[prepared.positions]
        parts = (found.cross_entropy, weights, prepared.levels, prepared.positions)  # [N] each
        self.parts = [part.to("cpu", non_blocking=True) for part in parts]
        self.sent = torch.cuda.current_stream(weights.device).record_event() if weights.is_cuda else None

    def enter(self, nats: NDArray[np.float64], levels: NDArray[np.float64]) -> None:
        """Write the sums of its rows into nats [S, R] and levels [S, R, 2, 10], in float64, in the positions' order."""
        if self.sent is not None:
            self.sent.synchronize()
        values, weights, noise = (part.double().numpy() for part in self.parts[:3])
        row, count = self.parts[3].numpy() // self.width, len(self.rows)
        nats.flat[self.rows] = np.bincount(row, weights * values, count)
        bucket = row * BUCKETS + (noise * BUCKETS).astype(np.int64).clip(0, BUCKETS - 1)
        by_level = levels.reshape(-1, 2, BUCKETS)  # a view
        by_level[self.rows, 0] = np.bincount(bucket, values, count * BUCKETS).reshape(count, BUCKETS)
        by_level[self.rows, 1] = np.bincount(bucket, minlength=count * BUCKETS).reshape(count, BUCKETS)


@contextmanager
def evaluated_with(model: Any, attention: KernelParams) -> Iterator[None]:
    """The model in evaluation mode, its layers under the policies of `attention`; afterwards as it was."""
    config, training = model.config, model.training
    before = {name: getattr(config, name) for name in STORED_ATTENTION}
    store_attention(config, attention)
    model.eval()
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
        model.train(training)
