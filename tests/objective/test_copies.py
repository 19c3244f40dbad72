"""Training against clean earlier blocks: one pass over copies equals what the sampler computes block by block."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from qwen3llada.batches.samples import Sample
from qwen3llada.batches.settings import BatchSettings
from qwen3llada.batches.source import Source
from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.diffusion.params import NoiseParams
from qwen3llada.modeling.attention import POLICIES, Policy, block_window, plan
from qwen3llada.modeling.params import store_attention
from qwen3llada.objective.batch_loss import BatchLoss
from qwen3llada.objective.copies import views_of
from qwen3llada.objective.last_layer import shorten_last_layer
from qwen3llada.objective.objective import MaskedDiffusionObjective
from qwen3llada.objective.params import PretrainKernelParams
from tests.objective.objective_steps import MASK, make_model

EOS, WINDOW = 65, 1
CAUSAL = [name for name, policy in POLICIES.items() if policy.causal]
PLANS = [*POLICIES, "alternate:block_causal,window", "alternate:full,block"]
TASKS = ("pretraining", "documents", "sft")


class Rows:
    """Five texts of unequal length, in SFT with prompts of unequal length, some of which end within a block."""

    def __init__(self, task):
        generator = np.random.default_rng(5)
        self.lengths = np.array([13, 9, 16, 2, 11])
        self.rows = [generator.integers(0, 60, length) for length in self.lengths]
        if task == "documents":
            self.rows[0][[4, 5]] = self.rows[2][7] = self.rows[4][0] = EOS
        self.prompts = [5, 4, 9, 1, 0] if task == "sft" else [None] * 5

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return Sample(self.rows[index], self.prompts[index])


def settings_of(task, policy, block_length, **noise):
    attention = PretrainKernelParams(
        policy=policy, block_length=block_length, window_blocks=WINDOW, within_documents=task == "documents"
    )
    knobs = {"noise": NoiseParams(**noise), "attention": attention, "mask_token_id": MASK, "eos_token_id": EOS}
    return BatchSettings(seed=1, micro_batch_size=5, pad_to_multiple_of=4, real_tokens=torch.arange(60), **knobs)


def batch_of(task, settings):
    (step,) = Source(Rows(task), settings).steps(0)
    return step.micro_batches[0]


def loss_of(settings, model, name="guidelines", implementation="sdpa"):
    store_attention(model.config, settings.attention)
    end = EOS if settings.attention.within_documents else None
    model.set_attn_implementation(implementation)
    shorten_last_layer(model)
    return BatchLoss(
        masked_loss=LOSSES[name], smoothing=0.1, mask_token_id=MASK, attention=settings.attention, config=model.config,
        implementation=implementation, document_end=end, pad_to_multiple_of=4, device=torch.device("cpu"),
        shortened=True,
    )  # fmt: skip


def sees(policy, prompt, block_length, query, key):
    if policy == "full":
        return True
    if policy == "block":
        return key < prompt or (query >= prompt and (query - prompt) // block_length == (key - prompt) // block_length)
    back = query // block_length - key // block_length
    return back >= 0 and (policy == "block_causal" or back <= WINDOW)


def logits_of_document(model, policy, clean, noisy, prompt, block_length):
    """Logits of one document. Causal policies use one forward pass per block, on a clean past."""
    names = plan(policy, model.config.num_hidden_layers)
    n, causal = len(clean), POLICIES[names[0]].causal
    masks = {}
    for kind, name in zip(model.config.layer_types, names, strict=True):
        table = [[sees(name, prompt, block_length, q, k) for k in range(n)] for q in range(n)]
        masks[kind] = torch.tensor(table)[None, None]
    if not causal:
        return model(torch.tensor([noisy]), attention_mask=masks).logits[0]
    rows = []
    for start in range(0, n, block_length):
        stop = min(start + block_length, n)
        canvas = [*clean[:start], *noisy[start:stop], *clean[stop:]]
        rows.append(model(torch.tensor([canvas]), attention_mask=masks).logits[0, start:stop])
    return torch.cat(rows)


def expected(model, policy, batch, view, block_length, documents):
    """Logits [B, L, V], one document at a time."""
    logits = torch.zeros(*batch.tokens.shape, model.config.vocab_size)
    for row, (clean, noisy, valid) in enumerate(
        zip(batch.tokens.tolist(), view.tokens.tolist(), batch.valid.tolist(), strict=True)
    ):
        length, prompt = sum(valid), 0 if batch.prompt_lengths is None else int(batch.prompt_lengths[row])
        ends = [i + 1 for i in range(length) if documents and clean[i] == EOS and i + 1 < length]
        for start, stop in zip([0, *ends], [*ends, length], strict=True):
            part = slice(start, stop)
            logits[row, part] = logits_of_document(model, policy, clean[part], noisy[part], prompt, block_length)
    return logits


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("policy", PLANS)
def test_the_pass_equals_one_pass_for_each_block(policy, task, views):
    """Loss and gradients: one pass over [corrupted | clean] equals a pass per block on a clean past.

    Every loss under block_causal, one of them under the other policies.
    """
    block_length = 4
    settings = settings_of(task, policy, block_length, views=views, random_length_prob=0.3)
    batch, model = batch_of(task, settings), make_model()
    given = {"mask_token_id": MASK, "valid": batch.valid, "prompt_lengths": batch.prompt_lengths}
    # The plain form divides by the batch's content, a step by its content before answers are extended.
    held = {"valid": batch.valid, "prompt_lengths": batch.prompt_lengths}
    for name, masked_loss in LOSSES.items():
        if name != "guidelines" and policy != "block_causal":
            continue  # a loss does not depend on the mask
        loss, denominator = loss_of(settings, model, name), batch.step.denominator(masked_loss)
        model.zero_grad()
        found = loss(MaskedDiffusionObjective(model, chunk_size=7), batch).total / denominator
        found.backward()
        gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
        model.zero_grad()
        total = torch.zeros(())
        for view in views_of(batch):
            logits = expected(model, policy, batch, view, block_length, task == "documents")
            plain = masked_loss(logits, batch.tokens, view, **given, smoothing=0.1)
            total = total + plain * masked_loss.denominator(batch.tokens, **held) / denominator / views
        total.backward()
        assert float(found) == pytest.approx(float(total), rel=1e-5)
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[key], parameter.grad, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("policy", CAUSAL)
@pytest.mark.parametrize("block_length", [1, 3, 4, 32])
def test_it_is_what_the_sampler_computes(policy, block_length):
    """Cross-entropies of a pass equal those of the sampler's context: prompt, cache of finished blocks, block."""
    from qwen3llada.sampling.block_contexts import open_context
    from qwen3llada.sampling.canvas import lay_out

    settings = settings_of("sft", policy, block_length)
    batch, model = batch_of("sft", settings), make_model().eval()
    loss = loss_of(settings, model)
    compared = 0
    with torch.no_grad():
        found = loss(MaskedDiffusionObjective(model), batch)
        values = iter(found.cross_entropy.tolist())
        for row in range(len(batch.tokens)):
            length, prompt = int(batch.valid[row].sum()), int(batch.prompt_lengths[row])
            clean, noisy = batch.tokens[row, :length], batch.noised.tokens[row, :length]
            answer = [MASK] * (length - prompt)
            canvas = lay_out([clean[:prompt].tolist()], [answer], MASK, block_length, from_zero=True)
            context = open_context(model, canvas, policy, "none")
            for block in range(canvas.blocks):
                start = canvas.start + block * block_length
                stop = min(start + block_length, length)
                context.open(torch.tensor([0]), torch.tensor([block]), stop - start)
                states = context.hidden(noisy[None, start:stop])
                context.close(clean[None, start:stop])
                log_q = model.lm_head(states).log_softmax(-1)[0]
                for column in range(start, stop):
                    if batch.noised.masked[row, column]:
                        assert next(values) == pytest.approx(-float(log_q[column - start, clean[column]]), abs=1e-5)
                        compared += 1
    assert compared == len(found.cross_entropy) > 10


def test_the_corrupted_copy_holds_only_blocks_of_the_answer():
    settings = settings_of("sft", "block_causal", 4)
    batch, model = batch_of("sft", settings), make_model()
    prepared = loss_of(settings, model).prepare(batch)
    # The answers begin in the blocks from 4, 4, 8, 0 and 0 on; that of the last row, 11 tokens, is the longest rest.
    assert (prepared.corrupted, prepared.tokens.shape[1]) == (12, 12 + 16)
    assert prepared.tokens[:, 12:].tolist() == batch.tokens.tolist()
    pretraining = batch_of("pretraining", settings_of("pretraining", "block_causal", 4))
    assert loss_of(settings, model).prepare(pretraining).corrupted == 16


def test_two_views_share_a_clean_copy_and_predict_every_token_once():
    settings = settings_of("pretraining", "block_causal", 4, views=2, random_length_prob=0.0)
    batch, model = batch_of("pretraining", settings), make_model()
    prepared = loss_of(settings, model).prepare(batch)
    assert prepared.tokens.shape[1] == 3 * 16
    masked = [view.masked for view in views_of(batch)]
    assert torch.equal(masked[0] ^ masked[1], batch.valid)
    assert len(prepared.positions) == int(batch.valid.sum())
    assert torch.allclose(batch.noised.p_mask + batch.complement.p_mask, torch.ones(()))
    doubled = settings_of("pretraining", "full", 4, views=2, random_length_prob=0.0)
    batch = batch_of("pretraining", doubled)
    assert loss_of(doubled, model).prepare(batch).tokens.shape == (2 * 5, 16)


def test_levels_of_blocks_are_one_in_each_part():
    """Each block's level is in a different one of equal parts of [0, 1), whatever else is in the batch."""
    settings = settings_of("pretraining", "block_causal", 4, random_length_prob=0.0)
    batch = batch_of("pretraining", settings)
    for row, length in zip(batch.t.tolist(), batch.valid.sum(1).tolist(), strict=True):
        levels = row[:length]
        assert all(len(set(levels[i : i + 4])) == 1 for i in range(0, length, 4))
        blocks = levels[::4]
        assert sorted(int(level * len(blocks)) for level in blocks) == list(range(len(blocks)))
    alone = replace(settings, micro_batch_size=1)
    rows = [b.t[0] for step in Source(Rows("pretraining"), alone).steps(0) for b in step.micro_batches]
    for row, found in zip(batch.t, rows, strict=True):
        assert torch.equal(row[: len(found)][found < 1], found[found < 1])
    whole = settings_of("pretraining", "block_causal", 4, random_length_prob=0.0, level="sequence")
    assert batch_of("pretraining", whole).t.dim() == 1


def test_the_last_layer_leaves_out_what_nobody_reads():
    settings = settings_of("sft", "alternate:block_causal,window", 4)
    batch, model = batch_of("sft", settings), make_model()
    loss, seen = loss_of(settings, model), []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    loss(MaskedDiffusionObjective(model), batch)
    assert seen == [12 + 16, 12]


def test_masks_are_made_once_for_a_shape():
    settings = settings_of("pretraining", "alternate:block_causal,window", 4, random_length_prob=0.0)
    batch, model = batch_of("pretraining", settings), make_model()
    loss = loss_of(settings, model)
    full = replace(batch, valid=torch.ones_like(batch.valid), padded=False)
    one, other = (loss.attention_mask(loss.prepare(full)) for _ in range(2))
    assert set(one) == {"full_attention", "sliding_attention"}
    assert all(one[kind] is other[kind] for kind in one)
    assert one["full_attention"].shape == (1, 1, 32, 32)


def test_a_block_mask_of_the_last_layer_is_that_of_the_predicted_columns():
    """FlexAttention without compilation: the loss of dense masks, with a last layer of the first 128 columns alone."""
    settings = settings_of("pretraining", "block_causal", 32, random_length_prob=0.0)
    generator = np.random.default_rng(1)
    rows = Rows("pretraining")
    rows.rows, rows.lengths, rows.prompts = [generator.integers(0, 60, 128)], np.array([128]), [None]
    (step,) = Source(rows, settings).steps(0)
    totals = []
    for implementation in ("sdpa", "flex_attention"):
        model, seen = make_model(head_dim=16), []
        model.model.layers[-1].mlp.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].shape[1]))
        loss = loss_of(settings, model, implementation=implementation)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            totals.append(float(loss(MaskedDiffusionObjective(model), step.micro_batches[0]).total))
        assert seen == [128]
    assert totals[1] == pytest.approx(totals[0], rel=1e-5)


@pytest.mark.parametrize("policy", [*CAUSAL, "mine", "alternate:block_causal,mine"])
def test_counted_pairs_are_those_of_the_mask(policy, monkeypatch):
    """As FlexAttention multiplies them, for whole blocks. Any policy can have a window, whatever its name is."""
    monkeypatch.setitem(POLICIES, "mine", Policy(sees=block_window, causal=True, keeps_prompt=True, windowed=True))
    rows = Rows("pretraining")
    rows.rows, rows.lengths, rows.prompts = [np.arange(16)] * 2, np.array([16] * 2), [None] * 2
    settings = settings_of("pretraining", policy, 4, random_length_prob=0.0)
    (step,) = Source(rows, replace(settings, micro_batch_size=2)).steps(0)
    model = make_model()
    flex = replace(loss_of(settings, model), implementation="flex_attention")
    dense = loss_of(settings, model)
    mask = dense.attention_mask(dense.prepare(step.micro_batches[0]))
    kinds = model.config.layer_types
    seen = [int((mask[kind] if isinstance(mask, dict) else mask).sum()) for kind in kinds]  # one mask for both rows
    assert flex.prepare(step.micro_batches[0]).pairs == 2 * sum(seen) // len(seen)
