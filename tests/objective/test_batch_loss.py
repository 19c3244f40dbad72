"""From a batch to its loss, against the plain form of each loss on full logits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from qwen3llada.batches.samples import Sample
from qwen3llada.batches.settings import BatchSettings
from qwen3llada.batches.source import Source
from qwen3llada.diffusion.corruption import Noised, NoiseParams
from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.diffusion.schedules import SCHEDULES
from qwen3llada.objective.batch_loss import BatchLoss
from qwen3llada.objective.copies import views_of
from qwen3llada.objective.loss_by_level import BUCKETS, bucket_sums
from qwen3llada.objective.objective import MaskedDiffusionObjective
from qwen3llada.objective.params import KernelParams
from tests.objective.objective_steps import CAP, MASK, SAMPLES, SMOOTHING, TASKS, batches, make_model

HOW = ("sequence", "position")
CONFIG = make_model().config


def batch_of(task, how):
    """All samples in one batch, with a noise level per sequence or per position."""
    (batch,) = batches(task, SAMPLES, 1)
    if how == "sequence":
        return batch
    rng = np.random.default_rng(3)
    t = torch.from_numpy(rng.uniform(0.1, 1, batch.tokens.shape)).float()
    answer = batch.valid
    if batch.prompt_lengths is not None:
        answer = answer & (torch.arange(t.shape[1]) >= batch.prompt_lengths[:, None])
    masked = answer & (torch.from_numpy(rng.random(t.shape)) < t)
    return replace(batch, t=t, noised=Noised(batch.tokens.masked_fill(masked, MASK), masked, t))


def loss_of(name, **changes):
    settings = {"attention": KernelParams(), "config": CONFIG, "implementation": "sdpa", "pad_to_multiple_of": 1}
    settings |= {"smoothing": SMOOTHING, "mask_token_id": MASK, "document_end": None, "device": torch.device("cpu")}
    return BatchLoss(masked_loss=LOSSES[name], **settings | changes)


class SameText:
    """So many samples of one text."""

    def __init__(self, rows, length):
        self.lengths, self.text = np.full(rows, length), np.arange(length) % MASK

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return Sample(self.text, None)


@pytest.mark.parametrize("schedule", ["uniform", "cosine"])
@pytest.mark.parametrize("policy", ["full", "block_causal"])
def test_a_second_view_has_the_level_at_which_it_is_masked(policy, schedule):
    """In each bucket of levels about as much of the text is masked as the schedule says."""
    length, rows = 32, 400
    settings = BatchSettings(
        seed=0,
        noise=NoiseParams(schedule=schedule, views=2, random_length_prob=0.0),
        mask_token_id=MASK,
        attention=KernelParams(policy=policy, block_length=length),
        micro_batch_size=rows,
    )
    (step,) = Source(SameText(rows, length), settings).steps(0)
    (batch,) = step.micro_batches
    attention = KernelParams(policy=policy, block_length=length)
    prepared = loss_of("guidelines", attention=attention).prepare(batch)
    masked = torch.cat([batch.noised.masked, batch.complement.masked], 1 if policy == "block_causal" else 0)
    share = torch.cat([view.masked.float().mean(1, keepdim=True).expand(-1, length) for view in views_of(batch)], 1)
    if policy == "full":
        share = torch.cat(share.split(length, 1))
    share = share.flatten()[masked.flatten().nonzero().squeeze(1)]
    assert len(prepared.levels) == len(share) == rows * length
    for bucket in range(10):
        inside = (prepared.levels * 10).long().clamp(max=9) == bucket
        expected = SCHEDULES[schedule](prepared.levels[inside].double()).mean()
        assert inside.sum() > 20
        assert abs(share[inside].mean() - expected) < 0.12, bucket


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", LOSSES)
def test_equals_the_plain_loss(name, task, how):
    """Value and gradients, by the fused path or from full logits."""
    batch, model = batch_of(task, how), make_model()
    assert batch.noised.p_mask.dim() == (1 if how == "sequence" else 2)
    found = loss_of(name)(MaskedDiffusionObjective(model, chunk_size=7), batch)
    (found.total / batch.step.denominator(LOSSES[name])).backward()
    gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()
    plain = LOSSES[name](
        model(input_ids=batch.noised.tokens, attention_mask=batch.valid.long()).logits,
        batch.tokens,
        batch.noised,
        mask_token_id=MASK,
        valid=batch.valid,
        prompt_lengths=batch.prompt_lengths,
        smoothing=SMOOTHING,
        reweight_cap=CAP,
    )
    plain.backward()
    assert found.total.item() / batch.step.denominator(LOSSES[name]) == pytest.approx(plain.item(), rel=1e-5)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("task", TASKS)
def test_cross_entropies_are_summed_by_the_level_of_their_position(task, how):
    batch = batch_of(task, how)
    loss = loss_of("guidelines")(MaskedDiffusionObjective(make_model()), batch)
    expected = torch.zeros(2, BUCKETS)
    for row, column in batch.noised.masked.nonzero().tolist():
        t = batch.t[row] if how == "sequence" else batch.t[row, column]
        here = row * batch.tokens.shape[1] + column
        value = loss.cross_entropy[loss.prepared.positions.tolist().index(here)]
        expected[:, min(int(t * BUCKETS), BUCKETS - 1)] += torch.stack([value, torch.ones(())])
    torch.testing.assert_close(bucket_sums(loss), expected)
    assert expected[1].sum() == batch.noised.masked.sum()


@pytest.mark.parametrize("name", LOSSES)
def test_a_level_of_the_sequence_has_the_bits_of_the_same_level_everywhere(name):
    batch, objective = batch_of("sft", "sequence"), MaskedDiffusionObjective(make_model())
    shape = batch.tokens.shape
    noised = batch.noised._replace(p_mask=batch.noised.p_mask[:, None].expand(shape))
    each = replace(batch, noised=noised, t=batch.t[:, None].expand(shape))
    one, other = loss_of(name)(objective, batch), loss_of(name)(objective, each)
    assert torch.equal(one.total, other.total)
    assert torch.equal(bucket_sums(one), bucket_sums(other))
