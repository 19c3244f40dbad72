"""The first model, from which a KL penalty keeps the trained one."""

from contextlib import nullcontext
from typing import Any

import torch

from qwen3llada.batches.source import Step
from qwen3llada.objective.objective import MaskedDiffusionObjective
from qwen3llada.post_training.policy_loss import PolicyBatch, PolicyLoss
from qwen3llada.training.run import Run
from qwen3llada.training.start.model_and_processes import load_model


class Reference:
    """The model that training started from. Under adapters it is the trained model without them, else a second one.

    The second model is whole on every rank, also under FSDP2.
    """

    def __init__(self, run: Run) -> None:
        self.objective: Any = None
        if run.adapted is None:
            model = load_model(run.params, run.params.model, run.accelerator, whole=True).requires_grad_(False)
            self.objective = MaskedDiffusionObjective(model).to(run.device).eval()

    @torch.no_grad()
    def remember(self, run: Run, loss: PolicyLoss, step: Step) -> None:
        """Compute the log-probabilities of a step's micro-batches, for the loss to keep."""
        if self.objective is None:
            objective, without = run.objective, run.adapted.disable_adapter()
        else:
            objective, without = self.objective, nullcontext()
        training = objective.training
        objective.eval()
        with without, run.accelerator.autocast():
            for batch in step.micro_batches:
                assert isinstance(batch, PolicyBatch)
                loss.remember_reference(objective, batch)
        objective.train(training)
