"""The reward of held-out prompts, measured while training."""

from dataclasses import dataclass
from pathlib import Path

from qwen3llada.batches.samples import TokenDataset
from qwen3llada.post_training.gathering import gathered, share_of
from qwen3llada.post_training.params import RlParams
from qwen3llada.post_training.rollouts import Asked, figures, make_rollouts, write_rollouts
from qwen3llada.post_training.sampling_copy import SamplingCopy
from qwen3llada.training.run import Evaluation, Run

ANSWERS = "heldout.jsonl"


@dataclass
class HeldOutReward:
    """Answers held-out prompts, each once, and rewards them. The noise is the same at every measurement."""

    params: RlParams
    prompts: TokenDataset
    copy: SamplingCopy
    seed: int
    name: str = "eval_reward"

    def measure(self, run: Run) -> Evaluation:
        """The mean reward of the present weights. All ranks must call this."""
        text, params = self.copy.refresh(run), self.params
        asked = []
        for number in range(len(self.prompts)):
            tokens, length = self.prompts[number][:2]
            assert length is not None
            reference = text.decode(tokens[length:].tolist())
            asked.append(
                Asked(prompt=number, sample=0, tokens=tuple(tokens[:length].tolist()), reference=reference, key=number)
            )
        mine = share_of(asked, run.accelerator)
        answers = gathered(
            lambda: make_rollouts(text, mine, params.heldout_rollout, params.reward_sum, seed=self.seed),
            run.accelerator,
        )
        if run.accelerator.is_main_process:
            write_rollouts(answers_file(params), answers, step=run.state.global_step)
        found = figures(answers)
        del found["reward_spread"]
        curves = {f"eval/{name}": value for name, value in found.items()}
        return Evaluation(self.name, found["reward"], curves, higher_is_better=True, ends_run=self._ends(run, found))

    def _ends(self, run: Run, found: dict[str, float]) -> bool:
        """Whether the reward is high enough, or has not risen for long enough."""
        params, best = self.params, run.state.best
        if params.target_reward is not None and found["reward"] >= params.target_reward:
            return True
        if not params.patience or best is None or found["reward"] > best[self.name]:
            return False
        return run.state.global_step - best["step"] >= params.patience * params.eval_every_steps


def answers_file(params: RlParams) -> Path:
    """The answers to the held-out prompts at the newest measurement."""
    return params.reports / ANSWERS
