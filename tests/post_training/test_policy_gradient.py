"""The policy gradient of every method equals one written out by loops, and trace's is that of the expected reward."""

from functools import cache
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plain_policy import divergence, log_probs, surrogate, token_log_probs

from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM
from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.modeling.params import store_attention
from qwen3llada.objective.last_layer import shorten_last_layer
from qwen3llada.objective.objective import MaskedDiffusionObjective
from qwen3llada.objective.params import KernelParams
from qwen3llada.post_training.methods import METHODS, PassKnobs
from qwen3llada.post_training.policy_loss import PolicyLoss
from qwen3llada.post_training.rollouts import Rollout
from qwen3llada.post_training.tables import Layout, make_table, step_of_table

VOCAB, MASK, GEN, BLOCK = 6, 5, 4, 2
CLIP = {"clip_low": 0.1, "clip_high": 0.3}


def make_model(seed=0, policy="full"):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
    config = Qwen3LLadaConfig(vocab_size=VOCAB, mask_token_id=MASK, tie_word_embeddings=True, **sizes, **heads)
    model = Qwen3LLadaForMaskedLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    store_attention(model.config, KernelParams(policy=policy, block_length=BLOCK))
    return model


def make_rollout(prompt, tokens, steps, key=0):
    empty = {"prompt_text": "", "answer": "", "reference": "", "answer_tokens": len(tokens), "ended": False}
    empty["passes"] = max(steps)
    sure = [0.5] * len(tokens)
    return Rollout(
        prompt=0, sample=0, key=key, prompt_tokens=prompt, tokens=tokens, steps=steps, confidence=sure, **empty
    )


ROLLOUTS = [
    make_rollout([0, 1, 2], [3, 1, 0, 4], [2, 1, 4, 3], key=11),
    make_rollout([4, 4], [0, 2, 2, 1], [1, 2, 3, 3], key=-12),
    make_rollout([1, 0, 3], [2, 2], [2, 1], key=13),  # its second block was never decoded
    make_rollout([2], [1, 3, 3, 3], [1, 1, 2, 2], key=14),
]
ADVANTAGES = [1.5, -0.5, 2.0, -1.0]


def loss_of(model, policy, **changes):
    shorten_last_layer(model)
    settings = CLIP | {"kl": 0.0, "ratio": True} | changes
    return PolicyLoss(
        masked_loss=LOSSES["guidelines"],
        smoothing=0.0,
        mask_token_id=MASK,
        attention=KernelParams(policy=policy, block_length=BLOCK),
        config=model.config,
        implementation="sdpa",
        document_end=None,
        pad_to_multiple_of=1,
        device=torch.device("cpu"),
        shortened=True,
        **settings,
    )


def layout_of(policy, micro_batch_size=3, **processes):
    one = {"num_processes": 1, "process_index": 0}
    return Layout(
        mask_token_id=MASK,
        gen_length=GEN,
        block_length=BLOCK,
        causal=policy == "block_causal",
        pad_to_multiple_of=1,
        micro_batch_size=micro_batch_size,
        **one | processes,
    )


def run_step(loss, model, table, layout, *, first):
    """Gradients of a step, summed over its micro-batches, and the figures."""
    objective, step = MaskedDiffusionObjective(model), None
    step = step_of_table(table, layout, number=0, first=first, samples=4, figures={})
    figures = torch.zeros(len(loss.figure_names))
    model.zero_grad()
    for batch in step.micro_batches:
        found = loss(objective, batch)
        (found.total / loss.denominator(step)).backward()
        figures += found.figures / loss.denominator(step)
    return {name: p.grad.clone() for name, p in model.named_parameters()}, figures


def plain_gradient(model, old_model, reference_model, method, knobs, policy, *, kl, clip):
    """The same, by loops."""
    total, count = torch.zeros(()), 0
    where = {"policy": policy, "block_length": BLOCK, "gen_length": GEN, "mask": MASK}
    for rollout, advantage in zip(ROLLOUTS, ADVANTAGES, strict=True):
        steps = np.array(rollout.steps)
        first = len(rollout.prompt_tokens)
        blocks = np.array([(first + i) // BLOCK for i in range(len(steps))]) if policy == "block_causal" else None
        for one in method.passes(SimpleNamespace(steps=steps, blocks=blocks, key=rollout.key), knobs):
            now = token_log_probs(model, rollout, *one, **where)
            with torch.no_grad():
                old = token_log_probs(old_model, rollout, *one, **where)
                first_model = token_log_probs(reference_model, rollout, *one, **where)
            for log_p, log_old, log_first in zip(now, old, first_model, strict=True):
                term = -advantage * log_p
                if not method.keeps_best:
                    term = surrogate(log_p, log_old, advantage, clip["clip_low"], clip["clip_high"])
                total = total + term + kl * divergence(log_p, log_first)
                count += 1
    model.zero_grad()
    (total / count).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("policy", ["full", "block_causal"])
@pytest.mark.parametrize("name", METHODS)
def test_gradient_equals_the_one_written_out(name, policy):
    """Of the first update, and of a second one after the weights have moved, with clipping and divergence."""
    method, knobs = METHODS[name], PassKnobs(masks=2, shrink=2 if policy == "full" else 1, seed=5)
    model, reference = make_model(0, policy), make_model(1, policy)
    old = make_model(0, policy)
    loss, layout = loss_of(model, policy, kl=0.2, ratio=not method.keeps_best), layout_of(policy)
    table = make_table(ROLLOUTS, ADVANTAGES, method, knobs, layout, all_rows=True)
    loss.remembered.forget(len(table.rows), GEN, loss.device, reference=True)
    shorten_last_layer(reference)
    for batch in step_of_table(table, layout, number=0, first=True, samples=4, figures={}).micro_batches:
        loss.remember_reference(MaskedDiffusionObjective(reference), batch)
    for first in (True, False):
        found, figures = run_step(loss, model, table, layout, first=first)
        expected = plain_gradient(model, old, reference, method, knobs, policy, kl=0.2, clip=CLIP)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        measured = dict(zip(loss.figure_names, figures.tolist(), strict=True))
        assert (measured["kl_to_rollouts"] == 0) is first
        if not method.keeps_best and not first:
            assert 0 < measured["clip_fraction"] < 1
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))


def test_the_gradient_of_trace_is_that_of_the_expected_reward():
    """Enumerated: all orders of two positions, and all tokens. Weighing each trajectory by probability and reward."""
    model, prompt, policy = make_model(2), [0, 3], "full"
    rewards = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).tolist()
    expected_reward, rollouts, weights = torch.zeros(()), [], []

    @cache
    def probabilities(visible):
        return log_probs(model, list(visible), policy, BLOCK).exp()

    for (a, b), order in product(product(range(5), range(5)), ((0, 1), (1, 0))):
        answer, visible = [a, b], [*prompt, MASK, MASK]
        probability = torch.tensor(0.5)  # of the order
        for position in order:
            probability = probability * probabilities(tuple(visible))[2 + position, answer[position]]
            visible = [*visible[: 2 + position], answer[position], *visible[3 + position :]]
        expected_reward = expected_reward + probability * rewards[a][b]
        steps = [1 + order.index(0), 1 + order.index(1)]
        rollouts.append(make_rollout(prompt, answer, steps))
        weights.append(float(probability.detach()) * rewards[a][b])
    model.zero_grad()
    (-expected_reward).backward()
    truth = {name: p.grad.clone() for name, p in model.named_parameters()}

    loss = loss_of(model, policy)
    layout = Layout(**{**vars(layout_of(policy, micro_batch_size=16)), "gen_length": 2})
    table = make_table(rollouts, weights, METHODS["trace"], PassKnobs(), layout, all_rows=False)
    loss.remembered.forget(len(table.rows), 2, loss.device, reference=False)
    found, _ = run_step(loss, model, table, layout, first=True)
    assert table.loss_tokens == 2 * len(rollouts)
    scaled = {name: gradient * table.loss_tokens for name, gradient in found.items()}
    torch.testing.assert_close(scaled, truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("policy", ["full", "block_causal"])
def test_micro_batches_and_processes_change_nothing(policy):
    """Two ranks' gradients, added up as DDP does here, are those of one process."""
    model = make_model(0, policy)
    method, knobs, found = METHODS["coupled"], PassKnobs(masks=2, seed=1), {}
    for size, processes in ((100, 1), (1, 1), (3, 2), (100, 2)):
        loss, total = loss_of(model, policy), None
        for rank in range(processes):
            layout = layout_of(policy, size, num_processes=processes, process_index=rank)
            table = make_table(ROLLOUTS, ADVANTAGES, method, knobs, layout, all_rows=False)
            loss.remembered.forget(len(table.rows), GEN, loss.device, reference=False)
            gradients, _ = run_step(loss, model, table, layout, first=True)
            total = gradients if total is None else {name: total[name] + g for name, g in gradients.items()}
        found[size, processes] = total
    for gradients in found.values():
        torch.testing.assert_close(gradients, found[100, 1], rtol=1e-5, atol=1e-6)  # sums in another order


def test_rollouts_without_advantage_are_left_out_and_change_nothing():
    model, method, knobs, layout = make_model(), METHODS["trace"], PassKnobs(), layout_of("full")
    results = []
    for all_rows in (True, False):
        loss = loss_of(model, "full")
        table = make_table(ROLLOUTS, [1.0, 0.0, -1.0, 0.0], method, knobs, layout, all_rows=all_rows)
        loss.remembered.forget(len(table.rows), GEN, loss.device, reference=False)
        results.append((len(table.rows), run_step(loss, model, table, layout, first=True)[0]))
    (more, expected), (fewer, found) = results
    assert fewer < more
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("policy", ["full", "block_causal"])
def test_filled_micro_batches_have_the_same_rows_and_change_nothing(policy):
    """Also on a rank without rows, and where no rollout has a gradient."""
    model, method, found = make_model(0, policy), METHODS["trace"], {}
    for advantages, processes, filled in (
        (ADVANTAGES, 1, False),
        (ADVANTAGES, 1, True),
        (ADVANTAGES, 30, True),
        ([0.0] * 4, 2, True),
    ):
        loss, total, figures = loss_of(model, policy), 0, 0
        for rank in range(processes):
            layout = layout_of(policy, 4, num_processes=processes, process_index=rank, filled=filled)
            table = make_table(ROLLOUTS, advantages, method, PassKnobs(), layout, all_rows=False)
            loss.remembered.forget(max(1, len(table.rows)), GEN, loss.device, reference=False)
            step = step_of_table(table, layout, number=0, first=True, samples=4, figures={})
            sizes = [len(batch.tokens) for batch in step.micro_batches]
            assert (set(sizes) == {4}) == filled
            assert step.tokens == sum(rows_of(table, policy))
            assert all(batch.valid.any(1).all() for batch in step.micro_batches)
            gradients, own_figures = run_step(loss, model, table, layout, first=True)
            total, figures = total + gradients["model.layers.0.mlp.up_proj.weight"], figures + own_figures
        found[max(advantages), processes, filled] = torch.cat([total.flatten(), figures])
    expected = found[2.0, 1, False]
    assert expected.abs().max() > 1e-3
    assert not found[0.0, 2, True].any()
    for key in ((2.0, 1, True), (2.0, 30, True)):
        torch.testing.assert_close(found[key], expected, rtol=0, atol=1e-6)


def rows_of(table, policy):
    """Real columns of each row."""
    return [
        len(row.rollout.prompt_tokens) + (len(row.rollout.tokens) if policy == "block_causal" else GEN)
        for row in table.rows
    ]
