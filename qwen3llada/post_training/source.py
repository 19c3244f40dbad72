"""The optimiser steps of an epoch of prompts: rollouts of a batch of prompts, then one or several updates on them."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen3llada.batches.source import Source, Step
from qwen3llada.batches.step_plan import step_plan
from qwen3llada.post_training.advantages import best_of_group, group_advantages
from qwen3llada.post_training.gathering import gathered, share_of
from qwen3llada.post_training.methods import METHODS, PassKnobs
from qwen3llada.post_training.params import RlParams
from qwen3llada.post_training.policy_loss import PolicyLoss
from qwen3llada.post_training.reference import Reference
from qwen3llada.post_training.rollouts import (
    Asked,
    Rollout,
    figures,
    from_json,
    make_rollouts,
    rollout_key,
    to_json,
    write_rollouts,
)
from qwen3llada.post_training.sampling_copy import SamplingCopy
from qwen3llada.post_training.tables import Layout, Table, make_table, step_of_table
from qwen3llada.training.run import Run

ROLLOUTS = "rollouts"


@dataclass
class Work:
    """What the steps need of the run, and the batch of rollouts that is being trained on."""

    run: Run | None = None
    copy: SamplingCopy | None = None
    reference: Reference | None = None
    batch: tuple[int, int] | None = None  # epoch, and number of the batch in it
    rollouts: list[Rollout] = field(default_factory=list)
    seconds: float = 0.0  # that making these rollouts took


@dataclass(frozen=True)
class RolloutSource(Source):
    """Prompts, from which the steps are made while training. `settings.step_size` prompts make a batch of rollouts."""

    params: RlParams
    work: Work = field(default_factory=Work)

    @property
    def steps_per_epoch(self) -> int:
        return super().steps_per_epoch * self.params.updates_per_batch

    def steps(self, epoch: int, start_step: int = 0, cursors: Mapping[str, Any] | None = None) -> Iterator[Step]:
        """The optimiser steps of the epoch. Rollouts are made when the first step on them is asked for."""
        if start_step % self.params.updates_per_batch:
            self._write()  # again, for the case that the files are gone
        for number in range(start_step, self.steps_per_epoch):
            batch, update = divmod(number, self.params.updates_per_batch)
            if update == 0:
                self._roll_out(epoch, batch)
            assert self.work.batch == (epoch, batch)
            table = self._table()
            if update == 0:
                self._remember(table)
            yield self._step(table, number, update)

    def in_run(self, total_steps: int) -> "RolloutSource":
        return self

    def cursors_after(self, step: Step, before: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def samples_of(self, epoch: int, step: int) -> list[int]:
        """Numbers of the prompts of an optimiser step."""
        return self._prompts(epoch, step // self.params.updates_per_batch)

    def state(self) -> dict[str, Any] | None:
        """The rollouts and what is remembered of them, where the next step trains on them again. For all ranks."""
        state = self._run.state
        if state.epoch_batch % self.params.updates_per_batch == 0:
            return None
        memory = self._loss.remembered
        assert self.work.batch is not None
        if not memory.gathered:
            memory.gather(lambda tensor: self._run.accelerator.reduce(tensor, "sum"))
        tensors = {"old": memory.old, "reference": memory.reference}
        known = {name: tensor.cpu() for name, tensor in tensors.items() if tensor is not None}
        return {"batch": list(self.work.batch), "rollouts": to_json(self.work.rollouts), **known}

    def restore(self, carried: dict[str, Any]) -> None:
        """Go on with the rollouts that a checkpoint holds."""
        epoch, number = carried["batch"]
        self.work.batch, self.work.rollouts = (epoch, number), from_json(carried["rollouts"])
        memory, device = self._loss.remembered, self._run.device
        memory.old, memory.gathered = carried["old"].to(device), True
        memory.reference = carried["reference"].to(device) if "reference" in carried else None
        memory.columns = self.params.rollout.gen_length

    def _roll_out(self, epoch: int, batch: int) -> None:
        """Make the rollouts of a batch of prompts. All ranks make their share, and get all."""
        run, params = self._run, self.params
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)  # the last update may still run, and is not a part of the rollouts
        began = time.perf_counter()
        assert self.work.copy is not None
        text = self.work.copy.refresh(run)
        in_run = epoch * super().steps_per_epoch + batch
        asked = [self._asked(text, in_run, prompt, i) for prompt in self._prompts(epoch, batch) for i in self._group]
        method, mine = METHODS[params.method], share_of(asked, run.accelerator)

        def make() -> list[Rollout]:
            rewards, seed = params.reward_sum, self.settings.seed
            return make_rollouts(text, mine, params.rollout, rewards, seed=seed, once=method.ordered)

        self.work.rollouts = gathered(make, run.accelerator)
        self.work.batch, self.work.seconds = (epoch, batch), time.perf_counter() - began
        self._write()

    def _asked(self, text: Any, batch: int, prompt: int, number: int) -> Asked:
        sample = self.dataset[prompt]  # type: ignore[index]
        return Asked(
            prompt=prompt,
            sample=number,
            tokens=tuple(sample.tokens[: sample.prompt_length].tolist()),
            reference=text.decode(sample.tokens[sample.prompt_length :].tolist()),
            key=rollout_key(batch, prompt, number),
        )

    def _table(self) -> Table:
        params, method = self.params, METHODS[self.params.method]
        rewards = np.array([rollout.reward for rollout in self.work.rollouts]).reshape(-1, params.group_size)
        advantages = best_of_group(rewards) if method.keeps_best else group_advantages(rewards, params.advantage)
        knobs = PassKnobs(masks=params.masks, shrink=params.shrink, seed=self.settings.seed)
        rows = advantages.ravel().tolist()
        return make_table(self.work.rollouts, rows, method, knobs, self._layout, all_rows=params.kl > 0)

    def _remember(self, table: Table) -> None:
        """Make room for the log-probabilities of new rollouts, and compute those of the first model."""
        memory, reference = self._loss.remembered, self.work.reference
        columns, rows = self.params.rollout.gen_length, max(1, len(table.rows))
        memory.forget(rows, columns, self._run.device, reference=reference is not None)
        if reference is not None:
            reference.remember(self._run, self._loss, self._step(table, 0, 0))

    def _step(self, table: Table, number: int, update: int) -> Step:
        found = figures(self.work.rollouts, self.params.group_size)
        found["rollout_seconds"] = 0.0 if update else self.work.seconds
        samples = len(self.work.rollouts)
        return step_of_table(table, self._layout, number=number, first=update == 0, samples=samples, figures=found)

    def _write(self) -> None:
        """Write the rollouts: all batches to the working folder, the newest to the reports."""
        if not self._run.accelerator.is_main_process or self.work.batch is None:
            return
        epoch, number = self.work.batch
        batch = epoch * super().steps_per_epoch + number
        for path in (self.params.output_dir / ROLLOUTS / f"batch-{batch:06d}.jsonl", rollouts_file(self.params)):
            write_rollouts(path, self.work.rollouts, batch=batch)

    def _prompts(self, epoch: int, batch: int) -> list[int]:
        return step_plan(self.dataset.lengths, self.settings, epoch=epoch)[batch][1].tolist()  # type: ignore[union-attr]

    @property
    def _group(self) -> range:
        return range(self.params.group_size)

    @property
    def _run(self) -> Run:
        assert self.work.run is not None
        return self.work.run

    @property
    def _loss(self) -> PolicyLoss:
        loss = self._run.loss
        assert isinstance(loss, PolicyLoss)
        return loss

    @property
    def _layout(self) -> Layout:
        run, params = self._run, self.params
        return Layout(
            mask_token_id=self.settings.mask_token_id,
            gen_length=params.rollout.gen_length,
            block_length=params.attention.block_length,
            causal=params.attention.causal,
            pad_to_multiple_of=params.pad_to_multiple_of,
            micro_batch_size=params.micro_batch_size,
            num_processes=run.accelerator.num_processes,
            process_index=run.accelerator.process_index,
            filled=run.compiled,
        )


def rollouts_file(params: RlParams) -> Path:
    """The newest batch of rollouts."""
    return params.reports / f"{ROLLOUTS}.jsonl"


def remove_batches(params: RlParams) -> None:
    """Remove the rollouts of an earlier run: what lies in the working folder is one run's."""
    for file in (params.output_dir / ROLLOUTS).glob("batch-*.jsonl"):
        file.unlink()
