"""Post-training as a task of the trainer: its data are rollouts of the present weights, its loss is a policy's."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from qwen3llada.artifacts import remove_unfinished
from qwen3llada.batches.samples import Spread, TokenDataset
from qwen3llada.batches.settings import BatchSettings
from qwen3llada.batches.source import Source
from qwen3llada.corpus.tokens.mapped_tokens import load_tokens
from qwen3llada.corpus.tokens.tokenizer import check_data
from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.diffusion.params import NoiseParams
from qwen3llada.errors import InputError
from qwen3llada.objective.attention_kernels import resolve_implementation
from qwen3llada.objective.batch_loss import BatchLoss
from qwen3llada.post_training.held_out import HeldOutReward
from qwen3llada.post_training.methods import METHODS
from qwen3llada.post_training.params import RlParams
from qwen3llada.post_training.policy_loss import PolicyLoss
from qwen3llada.post_training.reference import Reference
from qwen3llada.post_training.sampling_copy import SamplingCopy
from qwen3llada.post_training.source import ROLLOUTS, RolloutSource, Work, remove_batches
from qwen3llada.sampling.request import check_request
from qwen3llada.training.loop import train
from qwen3llada.training.run import Run

if TYPE_CHECKING:
    from accelerate import Accelerator

# Modules that determine the weights beside those of every run, and knobs that do not.
CODE = (
    "post_training",
    "sampling/block_contexts.py",
    "sampling/canvas.py",
    "sampling/cuda/attention_few_rows.py",
    "sampling/cuda/attention_kernel.py",
    "sampling/cuda/attention_ranges.py",
    "sampling/cuda/attention_steps.py",
    "sampling/cuda/attention_tiles.py",
    "sampling/cuda/captured_function.py",
    "sampling/cuda/commit_kernels.py",
    "sampling/cuda/kernel_overlap.py",
    "sampling/cuda/layer_kernels.py",
    "sampling/cuda/logits_kernel.py",
    "sampling/cuda/noise_kernels.py",
    "sampling/cuda/packed_model.py",
    "sampling/cuda/pass_inputs.py",
    "sampling/cuda/product_kernels.py",
    "sampling/cuda/product_loops.py",
    "sampling/cuda/products.py",
    "sampling/cuda/program_cache.py",
    "sampling/cuda/proposal_kernel.py",
    "sampling/cuda/rotated_attention.py",
    "sampling/cuda/running_memory.py",
    "sampling/cuda/sampler.py",
    "sampling/cuda/shared_step.py",
    "sampling/cuda/step_programs.py",
    "sampling/cuda/support.py",
    "sampling/decoding.py",
    "sampling/dialogue/extraction.py",
    "sampling/dialogue/text_model.py",
    "sampling/eager.py",
    "sampling/head.py",
    "sampling/keyed_gumbel.py",
    "sampling/open_blocks.py",
    "sampling/prefix_cache.py",
    "sampling/remasking.py",
    "sampling/request.py",
    "sampling/revision.py",
    "sampling/sampler.py",
    "sampling/session.py",
    "sampling/trace/recording.py",
    "sampling/unmasking.py",
)
FREE = ("rollout.batch_size", "rollout.backend", "eval_temperature")


def post_train(params: RlParams, *, seed: int, template: str) -> dict[str, Any]:
    """Train on rewards as `params` say, from the beginning or a checkpoint, and write the final model to `params.dst`.

    Returns and raises as `training.loop.train`; RewardError if a reward fails.
    """
    return train(params, seed=seed, template=template, task=Rewarded(params))


@dataclass(frozen=True)
class Rewarded:
    """To answer so that the rewards are high."""

    params: RlParams
    code: tuple[str, ...] = CODE
    free: tuple[str, ...] = FREE

    def data(
        self, tokenizer: Any, accelerator: "Accelerator", *, seed: int, template: str
    ) -> tuple[Source, Source | None]:
        params = self.params
        params.reward_sum.check()
        for split in ("train", "heldout"):
            check_data(params.data / split, tokenizer, template)
            self._prompts(split)
        if tokenizer.mask_token_id is None:
            raise InputError("the model's tokenizer must have a mask token; convert adds it")
        settings = BatchSettings(
            seed=seed,
            noise=NoiseParams.model_validate({}),
            mask_token_id=tokenizer.mask_token_id,
            eos_token_id=tokenizer.eos_token_id,
            micro_batch_size=params.prompts_per_batch,
        )
        return RolloutSource(self._prompts("train"), settings, params, Work()), None

    def facts(self) -> dict[str, Any]:
        return {"rewards' code": self.params.reward_sum.digest()}

    def loss(self, tokenizer: Any, config: Any, device: torch.device) -> BatchLoss:
        params = self.params
        return PolicyLoss(
            masked_loss=LOSSES["guidelines"],  # weighs nothing here: `PolicyLoss` does
            smoothing=0.0,
            mask_token_id=tokenizer.mask_token_id,
            attention=params.attention,
            config=config,
            implementation=resolve_implementation(params.attention, device),
            document_end=None,
            pad_to_multiple_of=params.pad_to_multiple_of,
            device=device,
            shortened=True,
            clip_low=params.clip_low,
            clip_high=params.clip_high,
            kl=params.kl,
            ratio=not METHODS[params.method].keeps_best,
        )

    def begin(self, run: Run, carried: dict[str, Any] | None) -> None:
        """Give the run's data its model to sample from. Raises InputError for a prompt that cannot be answered."""
        params, source = self.params, run.data
        assert isinstance(source, RolloutSource)
        held_out = Spread(self._prompts("heldout"), params.eval_samples)
        with torch.random.fork_rng(devices=[]):  # loading must not move the generators that a checkpoint restored
            copy = SamplingCopy(run)
            source.work.reference = Reference(run) if params.kl > 0 else None
        for prompts in (self._prompts("train"), held_out):
            longest = int(max(prompts[i].prompt_length or 0 for i in range(len(prompts))))
            if longest + params.rollout.gen_length > params.max_length:
                raise InputError(
                    f"max_length={params.max_length} must be at least {longest + params.rollout.gen_length}:"
                    f" {longest} tokens of the longest prompt, and rollout.gen_length={params.rollout.gen_length}"
                )
            every = [p.tokens[: p.prompt_length].tolist() for p in (prompts[i] for i in range(len(prompts)))]
            check_request(copy.text.model, every, params.rollout)
        if run.accelerator.is_main_process:
            if run.state.global_step == 0:
                remove_batches(params)
            remove_unfinished(params.output_dir / ROLLOUTS)
        source.work.run, source.work.copy = run, copy
        run.judge = HeldOutReward(params, held_out, copy, source.settings.seed)
        if carried is not None:
            source.restore(carried)

    def _prompts(self, split: str) -> TokenDataset:
        folder = self.params.data / split
        dataset = load_tokens(folder)
        if len(dataset) == 0 or dataset[0].prompt_length is None:
            raise InputError(f"{folder}: must hold prompts with answers, not {len(dataset)} samples without")
        return dataset
