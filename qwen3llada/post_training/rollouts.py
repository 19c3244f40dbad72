"""Rollouts: answers of the present model, with the step at which each token was committed, and their rewards."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qwen3llada.artifacts import write_jsonl
from qwen3llada.errors import InputError
from qwen3llada.post_training.rewards import RewardSum, Sample
from qwen3llada.sampling.decoding import Step
from qwen3llada.sampling.dialogue.text_model import TextModel
from qwen3llada.sampling.keyed_gumbel import fold
from qwen3llada.sampling.params import AnswerParams
from qwen3llada.sampling.sampler import generate
from qwen3llada.sampling.trace.recording import Decided, TraceRecorder


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A prompt of which one rollout is wanted."""

    prompt: int  # its number in the data
    sample: int  # number of the rollout in its group
    tokens: tuple[int, ...]  # of the prompt
    reference: str  # the data's answer
    key: int  # of the sampler's noise


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """An answer and how it came about."""

    prompt: int  # number in the data
    sample: int  # number in the group
    key: int
    prompt_text: str
    answer: str
    reference: str
    prompt_tokens: list[int]
    tokens: list[int]  # decoded ones: the answer, its EOS and the rest of that block
    steps: list[int]  # forward pass that committed each token, from 1, without gaps
    confidence: list[float]  # probability of each token when it was committed
    passes: int  # forward passes in which a token was committed, kept or revised later
    answer_tokens: int  # up to and including its EOS
    ended: bool  # whether it has an EOS
    rewards: dict[str, float] = field(default_factory=dict)
    reward: float = 0.0


def rollout_key(batch: int, prompt: int, sample: int) -> int:
    """The key of a rollout's noise. With the seed it alone decides the tokens, for the same weights.

    Args:
        batch: number of the batch of rollouts in the run. prompt: number in the data. sample: number in the group.
    """
    return int(fold(fold(fold(torch.tensor(0), batch), prompt), sample))


class _CommittedOnce:
    """Notes whether any position is committed a second time."""

    def __init__(self) -> None:
        self.seen: Tensor | None = None
        self.again: Tensor | None = None

    def __call__(self, step: Step) -> None:
        if self.seen is None or self.again is None:
            self.seen, self.again = step.committed.clone(), torch.zeros_like(step.committed)
        else:
            self.again |= self.seen & step.committed
            self.seen |= step.committed


def make_rollouts(
    text: TextModel, asked: Sequence[Asked], decode: AnswerParams, rewards: RewardSum, *, seed: int, once: bool = False
) -> list[Rollout]:
    """Answer each of `asked` and reward the answers.

    `once`: every token must be committed once only, because the order is trained.
    Raises: InputError if it is not; RewardError naming the rollout whose reward failed.
    """
    found: list[Rollout] = []
    for start in range(0, len(asked), decode.batch_size):
        batch = asked[start : start + decode.batch_size]
        found += _decoded(text, batch, decode, seed=seed, once=once)
    return [_rewarded(rollout, rewards) for rollout in found]


def _decoded(text: TextModel, asked: Sequence[Asked], decode: AnswerParams, *, seed: int, once: bool) -> list[Rollout]:
    prompts, recorder, watch = [row.tokens for row in asked], TraceRecorder(), _CommittedOnce()

    def on_step(step: Step) -> None:
        recorder(step)
        if once:
            watch(step)

    generation = generate(
        text.model,
        prompts,
        decode,
        seed=seed,
        row_keys=[row.key for row in asked],
        eos_token_ids=text.ends,
        on_step=on_step,
    )
    if watch.again is not None and watch.again.any():
        raise InputError("rl.method=trace needs rollouts that commit each token once: rl.rollout revises tokens")
    start = max(map(len, prompts))
    answers = zip(asked, generation.tokens, strict=True)
    return [_rollout(text, row, answer.tolist(), recorder.row(i, start)) for i, (row, answer) in enumerate(answers)]


def _rollout(text: TextModel, row: Asked, tokens: list[int], decided: Sequence[Decided]) -> Rollout:
    """One answer, with what was `decided` at each of its positions."""
    # The recorder counts the passes of the whole batch. Numbered anew, the steps do not depend on other rows.
    steps = np.unique([position.step for position in decided], return_inverse=True)[1] + 1
    revised = {change.step for position in decided for change in position.earlier if change.token is not None}
    return Rollout(
        prompt=row.prompt,
        sample=row.sample,
        key=row.key,
        prompt_text=text.decode(row.tokens),
        answer=text.decode(tokens),
        reference=row.reference,
        prompt_tokens=list(row.tokens),
        tokens=[position.token for position in decided],
        steps=steps.tolist(),
        confidence=[round(position.confidence, 4) for position in decided],
        passes=len(revised | {position.step for position in decided}),
        answer_tokens=len(tokens),
        ended=bool(tokens) and tokens[-1] in text.ends,
    )


def _rewarded(rollout: Rollout, rewards: RewardSum) -> Rollout:
    sample = Sample(
        prompt=rollout.prompt_text,
        answer=rollout.answer,
        reference=rollout.reference,
        tokens=rollout.answer_tokens,
        ended=rollout.ended,
    )
    reward, parts = rewards(sample)
    return Rollout(**{**vars(rollout), "reward": reward, "rewards": parts})


def figures(rollouts: Sequence[Rollout], group_size: int = 1) -> dict[str, float]:
    """What curves show of rollouts. Groups of `group_size` follow each other."""
    rewards = np.array([rollout.reward for rollout in rollouts])
    parts = {name: [r.rewards[name] for r in rollouts] for name in rollouts[0].rewards}
    found = {
        "reward": float(rewards.mean()),
        "reward_spread": float(rewards.std()),
        "answer_length": float(np.mean([rollout.answer_tokens for rollout in rollouts])),
        "tokens_per_pass": float(np.mean([r.answer_tokens / max(1, r.passes) for r in rollouts])),
    }
    if len(parts) > 1:  # not `reward/…`: DVCLive keeps a curve and a folder of curves apart by their names alone
        found |= {f"rewards/{name}": float(np.mean(values)) for name, values in parts.items()}
    if group_size > 1:
        groups = rewards.reshape(-1, group_size)
        found["equal_groups"] = float((groups == groups[:, :1]).all(1).mean())
    return found


def write_rollouts(path: Path, rollouts: Iterable[Rollout], **facts: Any) -> None:
    """One JSON line for each rollout. `facts` come first in each."""
    write_jsonl(path, ({**facts, **asdict(rollout)} for rollout in rollouts))


def to_json(rollouts: Sequence[Rollout]) -> str:
    return json.dumps([asdict(rollout) for rollout in rollouts])


def from_json(text: str) -> list[Rollout]:
    return [Rollout(**row) for row in json.loads(text)]
