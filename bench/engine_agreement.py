"""Whether LMDeploy's engine gives the tokens of this project's sampler, greedy, one token a step.

Two measures. Free-running: the share of equal tokens in whole answers. One token that rounding decides otherwise
changes all that follow, so beside it stands the share between the sampler in bfloat16 and in float32. Teacher-forced:
at each state that the engine was in, the share of masked positions with the same most likely token, and of steps that
kept the same positions, or others whose confidence is the same in the engine's bfloat16.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.engine_lessons import lessons

LENGTHS = (5, 8, 31, 32, 33, 64, 75, 96)  # of the prompts; some are multiples of 4, some of 32
ANSWER = 64  # tokens
BLOCKS = (4, 32)
ROUNDING = 2**-7  # relative, of two confidences that the engine compares in bfloat16
TEXT = (
    "The Tower of London is a castle on the north bank of the River Thames in the middle of London. It was founded"
    " towards the end of 1066, after the Norman conquest, and has been a palace, a prison, a treasury and a home for"
    " animals. Its oldest part, the White Tower, was built by William the Conqueror in 1078, and many people of the"
    " city did not like it. Mira lives in the town by the river, and her friend keeps a goat. What do visitors see"
    " there today? They see the jewels of the king, the ravens, and the guards in their red and black clothes."
)


@dataclass(frozen=True)
class State:
    """A block in the middle of its decoding, as an engine had it at one step; each list has a block's length."""

    prefix: list[int]  # the prompt and the finished blocks before this one, a multiple of the block's length
    tokens: list[int]
    masked: list[bool]
    proposed: list[int]  # the most likely token at each position
    kept: list[bool]  # masked positions whose token the step kept


def prompts(model: Path | None) -> list[list[int]]:
    """One prompt of each length: the start of a text in the tokens of `model`, or of a lesson without one."""
    if model is None:
        known = lessons()
        return [known[i % len(known)][:length] for i, length in enumerate(LENGTHS)]
    from qwen3llada.corpus.tokens.tokenizer import load_tokenizer

    ids = load_tokenizer(model)(TEXT, add_special_tokens=False)["input_ids"]
    if len(ids) < max(LENGTHS):
        raise SystemExit(f"{model}: its tokenizer makes {len(ids)} tokens of the text, {max(LENGTHS)} are needed")
    return [ids[:length] for length in LENGTHS]


def replay(prompt: Sequence[int], answer: Sequence[int], records: Sequence[Mapping[str, Any]]) -> list[State]:
    """The states of one answer, from what `Engine.record` gave: each call for a block, in their order.

    The first call sees the prompt's last block. A call without masks is the clean pass of a finished block. Raises
    ValueError if the finished blocks are not the answer.
    """
    block = len(records[0]["tokens"])
    end = len(prompt) + len(answer)
    final = list(prompt[: len(prompt) - (len(prompt) % block or block)])
    states = []
    for record in records:
        if len(final) >= end:
            break
        if any(record["masked"]):
            states.append(State(list(final), **record))
        else:
            final += record["tokens"]
    # The engine has no clean pass of the last block: nobody asks for more.
    if states and len(final) < end:
        last = states[-1]
        final += [p if k else t for t, p, k in zip(last.tokens, last.proposed, last.kept, strict=True)]
    if final[:end] != [*prompt, *answer]:
        differ = sum(a != b for a, b in zip(final[:end], [*prompt, *answer], strict=False))
        raise ValueError(f"the engine's states end with other tokens than its answer ({differ} of {end} differ)")
    return states


@torch.no_grad()
def forced(model: Any, states: Sequence[State]) -> dict[str, float]:
    """Shares of `states` in which the model, computed plainly, agrees.

    argmax: of masked positions. choice: of steps. tied: of steps, counting also positions as sure up to `ROUNDING`.
    """
    same = positions = chosen = tied = 0
    for group in _of_equal_prefix(states):
        logits = _logits(model, group)
        best = logits.argmax(-1).cpu()
        sure = logits.softmax(-1).amax(-1).cpu()
        for state, tokens, probability in zip(group, best, sure, strict=True):
            masked = torch.tensor(state.masked)
            same += int((tokens == torch.tensor(state.proposed))[masked].sum())
            positions += int(masked.sum())
            kept = torch.tensor(state.kept)
            top = probability.masked_fill(~masked, -1).topk(int(kept.sum()))
            chosen += set(top.indices.tolist()) == set(kept.nonzero().flatten().tolist())
            tied += bool((probability[kept] >= top.values.min() * (1 - ROUNDING)).all())
    shares = {"argmax": same / positions, "choice": chosen / len(states), "tied": tied / len(states)}
    return shares | {"positions": positions, "steps": len(states)}


def _of_equal_prefix(states: Sequence[State]) -> Iterator[list[State]]:
    groups: dict[tuple[int, ...], list[State]] = {}
    for state in states:
        groups.setdefault(tuple(state.prefix), []).append(state)
    yield from groups.values()


def _logits(model: Any, states: Sequence[State]) -> Tensor:
    """Logits [S, W, V] float32 of the block of states with an equal prefix; the mask token never wins."""
    ids = torch.tensor([state.prefix + state.tokens for state in states], device=model.device)
    block = len(states[0].tokens)
    numbers = torch.arange(ids.shape[1], device=ids.device) // block
    visible = (numbers[None, :] <= numbers[:, None])[None, None].expand(len(ids), 1, -1, -1)
    logits = model(input_ids=ids, attention_mask=visible).logits[:, -block:].float()
    logits[..., model.config.mask_token_id] = -torch.inf
    return logits


def free(model: Any, asked: Sequence[Sequence[int]], block: int) -> list[list[int]]:
    """The sampler's answers, one token a step. `backend` auto: CUDA graphs on a GPU."""
    from qwen3llada.sampling.sampler import SampleParams, generate

    blocks = -(-(block - 1 + ANSWER) // block)
    params = SampleParams(block_length=block, gen_length=ANSWER, steps=blocks * block)
    return [row.tolist() for row in generate(model, asked, params, eos_token_ids=()).tokens]


def share(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float:
    """The share of equal tokens in equally many answers."""
    pairs = [(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def record_theirs(exported: Path, model: Path | None, block: int, file: Path, dtype: str) -> Iterator[dict[str, Any]]:
    """Answers of LMDeploy alone and in one batch, and its states, written to `file`."""
    from bench.lmdeploy_engine import Engine

    asked = prompts(model)
    engine = Engine(exported, block, [1, len(asked)], dtype)
    yield {"block": block, "note": f"engine up in {engine.seconds:.0f} s, {dtype}"}
    engine.answer(asked[:1], block)
    alone = [engine.record(prompt, ANSWER) for prompt in asked]
    batch = engine.answer(asked, ANSWER)
    file.write_text(json.dumps({"prompts": asked, "alone": alone, "batch": batch}))
    yield {"block": block, "equal in a batch and alone": share(batch, [answer for answer, _ in alone])}


def compare_ours(model: Path, block: int, file: Path) -> Iterator[dict[str, Any]]:
    """What of the record in `file` this project's model computes alike, in float32 and in bfloat16."""
    from qwen3llada.modeling.loading import load_pretrained

    found = json.loads(file.read_text())
    answers = [answer for answer, _ in found["alone"]]
    states = []
    for prompt, (answer, records) in zip(found["prompts"], found["alone"], strict=True):
        try:
            states += replay(prompt, answer, records)
        except ValueError as error:
            yield {"block": block, "note": f"prompt of {len(prompt)} tokens left out of teacher-forcing: {error}"}
    own = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        loaded = load_pretrained(model, dtype=dtype).to("cuda" if torch.cuda.is_available() else "cpu").eval()
        own[name] = free(loaded, found["prompts"], block)
        result = {"block": block, "ours": name, "free": share(answers, own[name])}
        yield result | (forced(loaded, states) if states else {})
        del loaded
    yield {"block": block, "floor": share(own["float32"], own["bfloat16"])}


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Lines of Markdown: a row for each block length, "-" where a figure is missing."""
    lines = [
        "| block | free: LMDeploy = ours float32 | = ours bfloat16 | floor: ours bfloat16 = float32"
        " | forced, float32: argmax, choice, choice or tied | forced, bfloat16: the same"
        " | LMDeploy in a batch = alone |",
        "|---|---|---|---|---|---|---|",
    ]
    for block in BLOCKS:
        of_block = [one for one in found if one.get("block") == block]
        of = {one["ours"]: one for one in of_block if "ours" in one}
        cells = [_percent(of.get(name, {}).get("free")) for name in ("float32", "bfloat16")]
        cells.append(_percent(next((one["floor"] for one in of_block if "floor" in one), None)))
        for name in ("float32", "bfloat16"):
            cells.append(", ".join(_percent(of.get(name, {}).get(what)) for what in ("argmax", "choice", "tied")))
        key = "equal in a batch and alone"
        cells.append(_percent(next((one[key] for one in of_block if key in one), None)))
        lines.append(f"| {block} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
