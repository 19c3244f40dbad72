"""From hidden states to proposed tokens: the vocabulary projection, only for positions that need it.

Shapes: N masked positions, D hidden size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qwen3llada.sampling import keyed_gumbel as noise
from qwen3llada.sampling.remasking import SCORES, Proposal, drawn
from qwen3llada.sampling.request import Request
from qwen3llada.sampling.unmasking import UNMASKING

LOGITS_PER_CHUNK = 2**24
"""Logits held at a time: 64 MiB in float32. Bounds peak memory for any canvas length and batch size."""


class Proposed(NamedTuple):
    """What the logits of N positions propose."""

    tokens: Tensor  # [N] int64, drawn at the temperature
    scores: Tensor  # [N] float64, the highest are committed first
    log_probs: Tensor  # [N] float64, natural log of the probability of `tokens`
    best: Tensor  # [N] int64, the likeliest token
    best_log_probs: Tensor  # [N] float64
    entropy: Tensor  # [N] float64, nats; zeros where nothing reads it


@dataclass(frozen=True, kw_only=True)
class Head:
    """Proposes and scores a token for each masked position."""

    project: Callable[[Tensor], Tensor]  # [n, D] -> [n, V], the model's output embedding
    vocab_size: int
    mask_token_id: int
    temperature: float
    cfg_scale: float
    remasking: str
    position_temperature: float = 0.0
    entropy: bool = False  # whether the way of unmasking reads it

    def propose(
        self,
        hidden: Tensor,
        unconditional: Tensor | None,
        token_keys: Tensor,
        score_keys: Tensor,
        position_keys: Tensor,
        remasking_temperature: Tensor,
    ) -> Proposed:
        """Propose tokens for N positions, in chunks.

        Args:
            hidden: [N, D] final hidden states.
            unconditional: [N, D] final hidden states of the pass with the prompt masked; None without guidance.
            token_keys, score_keys, position_keys: [N] int64 keys of the noise.
            remasking_temperature: [N] float64.
        """
        rows = max(1, LOGITS_PER_CHUNK // self.vocab_size)
        parts = [
            self._chunk(
                hidden[i : i + rows],
                None if unconditional is None else unconditional[i : i + rows],
                token_keys[i : i + rows],
                score_keys[i : i + rows],
                position_keys[i : i + rows],
                remasking_temperature[i : i + rows],
            )
            for i in range(0, len(hidden), rows)
        ]
        return Proposed(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def logits(self, hidden: Tensor, unconditional: Tensor | None) -> Tensor:
        """Guided logits [n, V] float32: l_u + (s + 1)(l - l_u) (arXiv 2207.12598). The mask token's is -inf."""
        logits = self.project(hidden).float()
        if unconditional is not None:
            without = self.project(unconditional).float()
            logits = without + (self.cfg_scale + 1) * (logits - without)
        logits[:, self.mask_token_id] = -torch.inf
        return logits

    def _chunk(
        self,
        hidden: Tensor,
        unconditional: Tensor | None,
        token_keys: Tensor,
        score_keys: Tensor,
        position_keys: Tensor,
        temperature: Tensor,
    ) -> Proposed:
        logits = self.logits(hidden, unconditional)
        top, best = logits.max(-1)
        tokens = best
        if self.temperature > 0:
            # Gumbel-max: argmax of logits + T·noise samples from softmax(logits / T). In float64, because float32 noise
            # visibly distorts the distribution (arXiv 2409.02908).
            perturbed = noise.gumbel_float64(token_keys, self.vocab_size).mul_(self.temperature).add_(logits)
            # Mask it again: a temperature near float64's maximum gives inf - inf = NaN here, which argmax would pick.
            perturbed[:, self.mask_token_id] = -torch.inf
            tokens = perturbed.argmax(-1)
            del perturbed
        # 1 - p as a sum over the other tokens: float32 resolves probabilities next to 1 this way.
        weights = (logits - top[:, None]).exp_().scatter_(-1, best[:, None], 0.0)
        tail = weights.sum(-1).double()
        chosen = logits.gather(-1, tokens[:, None])[:, 0]
        best_log_prob = -torch.log1p(tail)
        log_prob = (chosen - top).double() + best_log_prob
        entry = SCORES[self.remasking]
        uniform = noise.uniform(score_keys, 1)[:, 0] if entry.noisy else None
        proposal = Proposal(logits=logits, log_prob=log_prob, tail=tail, noise=uniform, temperature=temperature)
        score = entry.score(proposal)
        if self.position_temperature > 0:
            score = drawn(score, entry, noise.uniform(position_keys, 1)[:, 0], self.position_temperature)
        entropy = proposal.entropy if self.entropy else torch.zeros_like(log_prob)
        return Proposed(tokens, score, log_prob, best, best_log_prob, entropy)


def make_head(model: Any, request: Request) -> Head:
    params = request.params
    return Head(
        project=model.get_output_embeddings(),
        vocab_size=model.config.vocab_size,
        mask_token_id=request.mask_token_id,
        temperature=params.temperature,
        cfg_scale=params.cfg_scale,
        remasking=params.remasking,
        position_temperature=params.position_temperature,
        entropy=UNMASKING[params.unmask].entropy,
    )
