"""Parameters of post-training on rewards."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from qwen3llada.post_training.methods import METHODS
from qwen3llada.post_training.rewards import REWARDS, RewardSum, WeightedReward, check_reward
from qwen3llada.sampling.params import AnswerParams
from qwen3llada.sampling.remasking import SCORES
from qwen3llada.section import Section, one_of
from qwen3llada.training.run_params import RunParams

Normalization = Literal["none", "std"]


class RewardParams(Section):
    """One reward of a sum."""

    name: str = Field(
        "exact_match",
        description=f"{', '.join(REWARDS)}; or a function of yours: FILE.py:FUNCTION or MODULE:FUNCTION",
    )
    argument: str = Field("", description="What regex, length and format need: PATTERN, LOW-HIGH in tokens, TAG,TAG")
    weight: float = Field(1.0, ge=-1000, le=1000, description="Factor in the sum, -1,000 to 1,000")

    @model_validator(mode="after")
    def _known(self) -> Self:
        check_reward(self.name, self.argument)
        return self


EXACT = RewardParams.model_validate({})


class RolloutParams(AnswerParams):
    """How rollouts are decoded."""

    temperature: float = Field(
        1.0, ge=0, le=1e6, description="Temperature of the tokens' Gumbel noise in rollouts, 0 to 1,000,000"
    )


class RlParams(RunParams):
    """Post-training on rewards."""

    model: Path = Field(Path("out/qwen3llada-sft"), description="Folder of the model to start from")
    data: Path = Field(
        Path("data/tokenized/sft"), description="Tokenized prompts with answers: a folder with train/ and heldout/"
    )
    dst: Path = Field(Path("out/qwen3llada-rl"), description="Folder for the final model, Hugging Face format")
    output_dir: Path = Field(Path("out/rl"), description="Working folder: checkpoints/RUN/step-N, and rollouts/")
    reports: Path = Field(Path("reports/rl"), description="Folder for curves, rollouts and the summary")

    method: Annotated[str, one_of(METHODS)] = Field(
        "coupled",
        description="How log-probabilities are estimated: by random masks; coupled: each with its complement; trace: in"
        " the order of the rollout; best_of: no policy gradient, but cross-entropy of each group's best answers",
    )
    masks: int = Field(1, ge=1, le=1024, description="Random masks of an answer, 1 to 1,024; trace has none")
    shrink: int = Field(1, ge=1, le=2**20, description="trace: steps that are trained as one, 1 to 1,048,576")
    group_size: int = Field(8, ge=2, le=4096, description="Rollouts of a prompt, 2 to 4,096")
    prompts_per_batch: int = Field(8, ge=1, le=65536, description="Prompts in a batch of rollouts, 1 to 65,536")
    updates_per_batch: int = Field(1, ge=1, le=1024, description="Optimiser steps on a batch of rollouts, 1 to 1,024")
    clip_low: float = Field(0.2, gt=0, le=1, description="The ratio is clipped at 1 less this, above 0 to 1")
    clip_high: float = Field(0.2, gt=0, le=1000, description="The ratio is clipped at 1 plus this, above 0 to 1,000")
    kl: float = Field(0.0, ge=0, le=1000, description="Weight of the divergence from the first model, 0 to 1,000")
    advantage: Normalization = Field(
        "std", description="Reward less its group's mean: as it is, or divided by the group's standard deviation"
    )
    rewards: tuple[RewardParams, ...] = Field((EXACT,), min_length=1, description="Rewards, which are summed")
    rollout: RolloutParams = Field(RolloutParams.model_validate({}), description="How rollouts are decoded")

    eval_samples: int = Field(
        0, ge=0, le=1_000_000_000, description="Held-out prompts whose reward is measured, up to 1e+09; 0: all"
    )
    eval_temperature: float = Field(
        0.0, ge=0, le=1e6, description="Temperature at which held-out prompts are answered, 0 to 1,000,000"
    )
    target_reward: float | None = Field(
        None, ge=-1e6, le=1e6, description="Training ends at this held-out reward, -1,000,000 to 1,000,000; null: never"
    )
    patience: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Training ends after this many measurements in a row without a new best, up to 1,000,000; 0: never",
    )

    @property
    def reward_sum(self) -> RewardSum:
        """The rewards. Those with the same name are numbered."""
        names = [reward.name.rpartition(":")[2] for reward in self.rewards]
        labels = [name if names.count(name) == 1 else f"{name}_{i + 1}" for i, name in enumerate(names)]
        if len(set(labels)) < len(labels):  # a function's name ends in the number of another reward
            labels = [f"{name}_{i + 1}" for i, name in enumerate(names)]
        pairs = zip(self.rewards, labels, strict=True)
        return RewardSum([WeightedReward(r.name, r.argument, r.weight, label) for r, label in pairs])

    @property
    def phase(self) -> str:
        return "rl"

    @property
    def models_beside(self) -> int:
        """The copy that rollouts are sampled from, and the first model, if that is not the one without adapters."""
        return 1 + (self.kl > 0 and self.adapter.method == "none")

    @property
    def heldout_rollout(self) -> RolloutParams:
        """How held-out prompts are answered."""
        return self.rollout.model_copy(update={"temperature": self.eval_temperature})

    @model_validator(mode="after")
    def _fits(self) -> Self:
        rollout, attention = self.rollout, self.attention
        if attention.block_schedule:
            raise ValueError("attention.block_schedule must be empty: rollouts are decoded with one block length")
        if rollout.block_attention is not None:
            raise ValueError(
                f"rollout.block_attention={rollout.block_attention} must be null: attention.policy decides"
            )
        if attention.causal and rollout.block_length not in (None, attention.block_length):
            raise ValueError(
                f"rollout.block_length={rollout.block_length} must be attention.block_length={attention.block_length}"
                f" or null under attention.policy={attention.policy}"
            )
        if not any(reward.weight for reward in self.rewards):
            raise ValueError("rewards: at least one weight must not be 0, or every answer is as good as the other")
        if rollout.cfg_scale > 0:
            raise ValueError(
                f"rollout.cfg_scale={rollout.cfg_scale} must be 0: the guided model is another than the trained one"
            )
        if METHODS[self.method].ordered and rollout.revises:
            raise ValueError(
                f"method={self.method} needs rollouts that commit each token once: rollout.remask={rollout.remask} and"
                f" rollout.edit_threshold={rollout.edit_threshold} must be 0"
            )
        if rollout.temperature == 0 and not SCORES[rollout.remasking].noisy:
            raise ValueError(
                f"rollout.temperature=0 with rollout.remasking={rollout.remasking} makes all rollouts of a prompt equal"
            )
        return self
