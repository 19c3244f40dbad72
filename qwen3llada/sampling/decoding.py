"""The loop that turns masks into tokens.

Shapes: B rows, L columns of the canvas, J blocks, U units (a unit is one block of one row), W columns of a block,
S steps, D hidden size.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwen3llada.sampling import noise
from qwen3llada.sampling.canvas import Canvas
from qwen3llada.sampling.contexts import Context, open_context
from qwen3llada.sampling.head import Head
from qwen3llada.sampling.remasking import annealed, commit
from qwen3llada.sampling.request import Request


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one forward pass did. The tensors are live: clone what is to outlast the next step."""

    index: int  # forward passes of unmasking before this one
    canvas: Tensor  # [B, L] tokens so far
    committed: Tensor  # [B, L] bool, positions that this step committed
    confidence: Tensor  # [B, L] float32, probability that each decoded token had when it was committed, else 0


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Answers, and what they took."""

    tokens: list[Tensor]  # the answer of each row, up to and including its EOS
    canvas: Tensor  # [B, P+G] prompts, padded on the left to the longest, and answers; EOS after an answer's end
    forward_passes: int  # of the model, over the whole batch
    backend: str  # eager, or graph where the steps ran as CUDA graphs


@dataclass(frozen=True, kw_only=True)
class Units:
    """The blocks decoded together: one block of every row, or all blocks of all rows."""

    rows: Tensor  # [U] int64
    blocks: Tensor  # [U] int64
    tokens: Tensor  # [U, W] int64, changed in place
    masked: Tensor  # [U, W] bool, still to be decoded, changed in place
    given: Tensor  # [U, W] bool
    keys: Tensor  # [U] int64, of this block of this row
    counts: Tensor  # [U, S] int64, positions to commit in each step
    shares: Tensor  # [U] int64, steps of the block

    @classmethod
    def of(cls, request: Request, tokens: Tensor, rows: Tensor, blocks: Tensor, width: int) -> "Units":
        canvas = request.canvas
        at = (rows, blocks, slice(0, width))
        given, valid = canvas.in_blocks(canvas.given)[at], canvas.in_blocks(canvas.valid)[at]
        return cls(
            rows=rows,
            blocks=blocks,
            tokens=canvas.in_blocks(tokens)[at],
            masked=valid & ~given,
            given=given,
            keys=noise.fold(request.row_keys[rows], blocks),
            counts=request.schedule.counts[rows, blocks],
            shares=request.schedule.shares[rows, blocks],
        )

    def steps(self, threshold: float | None) -> Iterator[int]:
        """Numbers of the steps until nothing is masked: known beforehand under fixed unmasking, else looked up."""
        if threshold is None:
            yield from range(int((self.counts > 0).any(0).sum()))
        else:
            step = 0
            while self.masked.any():
                yield step
                step += 1


def decode(model: Any, request: Request) -> Generator[Step, None, Generation]:
    """Decode a request, yielding after each forward pass."""
    canvas, params = request.canvas, request.params
    tokens, confidence = canvas.tokens.clone(), torch.zeros(canvas.tokens.shape, device=canvas.tokens.device)
    by_block = canvas.in_blocks(tokens), canvas.in_blocks(confidence)
    threshold = params.confidence_threshold if params.unmask == "threshold" else None
    sampler = UnitSampler(model, request)
    index = 0
    for units in waves(request, tokens):
        sampler.open(units)
        for step in units.steps(threshold):
            taken, certainty = sampler.step(units, step, threshold)
            committed = torch.zeros_like(canvas.valid)
            at = (units.rows, units.blocks, slice(0, units.tokens.shape[1]))
            by_block[0][at] = units.tokens
            by_block[1][at] = torch.where(taken, certainty, by_block[1][at])
            canvas.in_blocks(committed)[at] = taken
            yield Step(
                index=index,
                canvas=tokens[:, : canvas.width],
                committed=committed[:, : canvas.width],
                confidence=confidence[:, : canvas.width],
            )
            index += 1
        sampler.close(units)
    answers = cut(request, tokens)
    return Generation(
        tokens=answers, canvas=tokens[:, : canvas.width], forward_passes=sampler.context.passes, backend="eager"
    )


def waves(request: Request, tokens: Tensor) -> Iterator[Units]:
    """The units to decode together, one wave after the other.

    Block by block, rows leave when nothing of them is left to decode or when the block just decoded holds an EOS.
    """
    canvas = request.canvas
    open_blocks = canvas.masked_per_block() > 0
    rows = torch.arange(len(tokens), device=tokens.device)
    numbers = torch.arange(canvas.blocks, device=tokens.device)
    if request.params.parallel_blocks:
        every = rows.repeat_interleave(canvas.blocks), numbers.repeat(len(rows))
        yield Units.of(request, tokens, *every, width=canvas.block_length)
        return
    for block in range(canvas.blocks):
        rows = rows[open_blocks[rows, block:].any(-1)]
        if not len(rows):
            return
        first = canvas.start + block * canvas.block_length
        width = min(canvas.block_length, canvas.width - first)
        yield Units.of(request, tokens, rows, numbers[block].expand(len(rows)), width)
        ended = is_end(request, tokens)[rows, first : first + width].any(-1)
        rows = rows[~ended]


def is_end(request: Request, tokens: Tensor) -> Tensor:
    """Decoded positions that hold an EOS: [B, L] bool."""
    ends = torch.tensor(request.eos_token_ids, dtype=tokens.dtype, device=tokens.device)
    return torch.isin(tokens, ends) & request.canvas.valid & ~request.canvas.given


def cut(request: Request, tokens: Tensor) -> list[Tensor]:
    """Each row's answer up to its first EOS. The blocks after that one are filled with EOS, in place.

    Decoded block by block they still hold masks, decoded at once they hold tokens that nobody asked for.
    """
    canvas = request.canvas
    ends = is_end(request, tokens)
    answers = []
    for row, length in enumerate(canvas.lengths.tolist()):
        answer = tokens[row, canvas.start : canvas.start + length]
        found = ends[row, canvas.start : canvas.start + length].nonzero()
        if len(found):
            first = int(found[0])
            answer[(first // canvas.block_length + 1) * canvas.block_length :] = request.eos_token_ids[0]
            answer = answer[: first + 1]
        answers.append(answer.clone())
    return answers


class UnitSampler:
    """One step of some units: the forward pass, the proposals, the choice of what to commit."""

    def __init__(self, model: Any, request: Request) -> None:
        self.request, self.guided = request, request.params.cfg_scale > 0
        self.head = Head(
            project=model.get_output_embeddings(),
            vocab_size=model.config.vocab_size,
            mask_token_id=request.mask_token_id,
            temperature=request.params.temperature,
            cfg_scale=request.params.cfg_scale,
            remasking=request.params.remasking,
        )
        canvas = guidance_canvas(request.canvas, request.mask_token_id) if self.guided else request.canvas
        self.context: Context = open_context(model, canvas, request.policy, request.params.cache)

    def open(self, units: Units) -> None:
        rows, blocks = units.rows, units.blocks
        if self.guided:
            rows = torch.cat([rows, rows + len(self.request.canvas.tokens)])
            blocks = torch.cat([blocks, blocks])
        self.context.open(rows, blocks, units.tokens.shape[1])

    def close(self, units: Units) -> None:
        self.context.close(self._seen(units))

    @torch.no_grad()
    def step(self, units: Units, step: int, threshold: float | None) -> tuple[Tensor, Tensor]:
        """Run one step, in place. Returns the committed positions [U, W] bool and the tokens' probabilities [U, W]."""
        states = self.context.hidden(self._seen(units))
        where = units.masked.nonzero(as_tuple=True)
        unconditional = states[len(units.rows) :][where] if self.guided else None
        width = units.tokens.shape[1]
        tokens, score, log_prob = self.head(
            states[: len(units.rows)][where],
            unconditional,
            noise.step_keys(units.keys, step, width, "token")[where],
            noise.step_keys(units.keys, step, width, "score")[where],
            annealed(self.request.params.remasking_temperature, step, units.shares)[where[0]],
        )
        proposed = units.tokens.index_put(where, tokens)
        scores = torch.zeros(units.masked.shape, dtype=torch.float64, device=score.device).index_put(where, score)
        confidence = torch.zeros_like(scores).index_put(where, log_prob.exp())
        counts = units.counts[:, step] if step < units.counts.shape[1] else torch.zeros_like(units.shares)
        taken = commit(scores, units.masked, counts, confidence, threshold)
        units.tokens.copy_(torch.where(taken, proposed, units.tokens))
        units.masked.logical_and_(~taken)
        return taken, confidence.float()

    def _seen(self, units: Units) -> Tensor:
        """The tokens that the model sees: under guidance also, below them, those with everything given masked."""
        if not self.guided:
            return units.tokens
        return torch.cat([units.tokens, units.tokens.masked_fill(units.given, self.request.mask_token_id)])


def guidance_canvas(canvas: Canvas, mask_token_id: int) -> Canvas:
    """The canvas twice over, [2B, L]: as it is, then with everything that was given masked."""
    doubled = {name: torch.cat([value, value]) for name, value in vars(canvas).items() if isinstance(value, Tensor)}
    hidden = canvas.tokens.masked_fill(canvas.given, mask_token_id)
    return Canvas(
        **(doubled | {"tokens": torch.cat([canvas.tokens, hidden])}),
        start=canvas.start,
        block_length=canvas.block_length,
    )
