"""From rollouts to micro-batches: the table of all passes of an optimiser step, and its rows as tensors.

A row is a pass over one rollout. Every rank knows the whole table and computes its share, so the denominator is known
before anything is computed, and the gradient does not depend on micro-batches or ranks.
Shapes: B rows of a micro-batch, L columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qwen3llada.batches.batch import Batch, StepFacts
from qwen3llada.diffusion.corruption import Noised
from qwen3llada.post_training.methods import Method, Pass, PassKnobs, Trajectory
from qwen3llada.post_training.policy_loss import PolicyBatch, PolicyStep
from qwen3llada.post_training.rollouts import Rollout

PADDING_TOKEN = 0  # any id would do: padding is neither attended to nor in the loss


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How rollouts are laid out as rows."""

    mask_token_id: int
    gen_length: int  # G, columns of an answer on the canvas
    block_length: int
    causal: bool  # blocks are trained side by side against clean earlier ones
    pad_to_multiple_of: int
    micro_batch_size: int
    num_processes: int
    process_index: int
    filled: bool = False  # every micro-batch has micro_batch_size rows: compiled layers take seconds for a new shape


@dataclass(frozen=True, kw_only=True)
class Row:
    """A pass over a rollout."""

    rollout: Rollout
    advantage: float
    masked: np.ndarray  # [n] bool
    predicted: np.ndarray  # [n] bool


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of a step that have a gradient, and the number of predicted tokens of all rows."""

    rows: Sequence[Row]
    loss_tokens: int
    idle: Row  # nothing of it is predicted: it stands where a rank has no row, and fills micro-batches

    @property
    def computed_tokens(self) -> int:
        return sum(int(row.predicted.sum()) for row in self.rows)


def make_table(
    rollouts: Sequence[Rollout],
    advantages: Sequence[float],
    method: Method,
    knobs: PassKnobs,
    layout: Layout,
    *,
    all_rows: bool,
) -> Table:
    """The passes over all rollouts. Rows of advantage 0 have no gradient; they are left out unless `all_rows`.

    Rows of similar length follow each other, which saves padding.
    """
    rows: list[Row] = []
    tokens = 0
    for rollout, advantage in zip(rollouts, advantages, strict=True):
        passes = method.passes(_trajectory(rollout, layout), knobs)
        counted = [] if method.keeps_best and advantage == 0 and not all_rows else passes
        tokens += sum(int(one.predicted.sum()) for one in counted)
        if advantage != 0 or all_rows:
            rows += [_row(rollout, advantage, one) for one in passes]
    rows.sort(key=lambda row: len(row.rollout.prompt_tokens))  # stable
    return Table(rows=rows, loss_tokens=tokens, idle=_idle(rollouts[0]))


def _idle(rollout: Rollout) -> Row:
    """A row that is computed and has no part in the loss.

    It is a real rollout rather than padding. Attention kernels differ in what they give where no key is seen at all,
    and a NaN there would reach the gradients of the weights.
    """
    nothing = np.zeros(len(rollout.tokens), bool)
    return Row(rollout=rollout, advantage=0.0, masked=~nothing, predicted=nothing)


def _row(rollout: Rollout, advantage: float, one: Pass) -> Row:
    return Row(rollout=rollout, advantage=advantage, masked=one.masked, predicted=one.predicted)


def _trajectory(rollout: Rollout, layout: Layout) -> Trajectory:
    first = len(rollout.prompt_tokens)
    columns = np.arange(first, first + len(rollout.tokens))
    return Trajectory(
        steps=np.array(rollout.steps, np.int64),
        blocks=columns // layout.block_length if layout.causal else None,
        key=rollout.key,
    )


def step_of_table(
    table: Table, layout: Layout, *, number: int, first: bool, samples: int, figures: dict[str, float]
) -> PolicyStep:
    """This rank's micro-batches. `number`: of the step in its epoch. `first`: of the updates on these rollouts."""
    together = layout.micro_batch_size * layout.num_processes
    micro_batches = max(1, -(-len(table.rows) // together))
    lengths = [_length(row, layout) for row in table.rows]
    scale = table.loss_tokens / max(1, table.computed_tokens)
    batches: list[Batch] = []
    for micro_batch in range(micro_batches):
        facts = StepFacts(
            number=number,
            micro_batch=micro_batch,
            micro_batches=micro_batches,
            samples=samples,
            tokens=sum(lengths),
            longest=max(lengths, default=_length(table.idle, layout)),
            sft=True,
            block_length=layout.block_length,
        )
        of_all = np.arange(micro_batch * together, min((micro_batch + 1) * together, len(table.rows)))
        mine = np.array_split(of_all, layout.num_processes)[layout.process_index]
        batches.append(_batch(table, mine, layout, facts, first=first, scale=scale))
    return PolicyStep(batches, figures, table.loss_tokens)


def _length(row: Row, layout: Layout) -> int:
    """Real columns of a row. Without a clean copy they include the masks that were never decoded, which were seen."""
    return len(row.rollout.prompt_tokens) + (len(row.rollout.tokens) if layout.causal else layout.gen_length)


def _batch(
    table: Table, numbers: np.ndarray, layout: Layout, facts: StepFacts, *, first: bool, scale: float
) -> PolicyBatch:
    """The rows of these numbers as tensors, with idle rows behind them where they are too few."""
    rows = [table.rows[number] for number in numbers]
    # The same prompt as in the row before it: an idle row then adds no columns.
    idle = _idle(rows[-1].rollout) if rows else table.idle
    rows += [idle] * ((layout.micro_batch_size if layout.filled else 1) - len(rows))
    lengths = [_length(row, layout) for row in rows]
    columns = -(-max(lengths) // layout.pad_to_multiple_of) * layout.pad_to_multiple_of
    shape = (len(rows), columns)
    clean, noisy = np.full(shape, PADDING_TOKEN), np.full(shape, PADDING_TOKEN)
    valid, masked, predicted = (np.zeros(shape, bool) for _ in range(3))
    prompts, levels = np.zeros(shape[0], np.int64), np.ones(shape[0], np.float32)
    for number, row in enumerate(rows):
        start = prompts[number] = len(row.rollout.prompt_tokens)
        end, stop = start + len(row.rollout.tokens), lengths[number]
        clean[number, :end] = row.rollout.prompt_tokens + row.rollout.tokens
        clean[number, end:stop] = layout.mask_token_id
        masked[number, start:end], masked[number, end:stop] = row.masked, True
        predicted[number, start:end] = row.predicted
        valid[number, :stop] = True
        levels[number] = row.masked.mean()
    noisy = np.where(masked, layout.mask_token_id, clean)
    return PolicyBatch(
        tokens=torch.from_numpy(clean),
        noised=Noised(torch.from_numpy(noisy), torch.from_numpy(masked), torch.from_numpy(levels)),
        complement=None,
        valid=torch.from_numpy(valid),
        prompt_lengths=torch.from_numpy(prompts),
        t=torch.from_numpy(levels),
        padded=not valid.all(),
        step=facts,
        predicted=torch.from_numpy(predicted).float(),
        rows=torch.from_numpy(np.pad(np.asarray(numbers, np.int64), (0, len(rows) - len(numbers)))),
        advantages=torch.tensor([row.advantage for row in rows], dtype=torch.float32),
        first=first,
        figure_scale=scale,
    )
