"""Attention that stays inside a document of a packed sequence."""

import numpy as np
import pytest
import torch
from runs import changed
from tiny_settings import common

from qwen3llada import Qwen3LLadaForMaskedLM
from qwen3llada.batches.samples import Sample
from qwen3llada.batches.settings import batch_settings
from qwen3llada.batches.source import Source
from qwen3llada.corpus.tokens.tokenizer import load_tokenizer
from qwen3llada.objective.batch_loss import batch_loss
from qwen3llada.objective.objective import MaskedDiffusionObjective
from qwen3llada.training.loop import evaluate, training_steps
from qwen3llada.training.params import PretrainParams, SftParams
from qwen3llada.training.start.start import start
from qwen3llada.training.stopping import StopRequest

EOS = 40  # of the tiny tokenizer
FIRST, SECOND, OTHER = [1, 2, 3, 4, 5, 6, EOS], [7, 8, 9, 10, 11, EOS, 20, 21], [30, 25, 38, 22, EOS, 9, 31, 2]


class Rows:
    def __init__(self, rows):
        self.rows = [np.array(row, np.int32) for row in rows]
        self.lengths = np.array([len(row) for row in rows])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return Sample(self.rows[index])


@pytest.fixture(params=["eager", "sdpa"])
def settings(request, tiny, tmp_path) -> PretrainParams:
    attention = {"implementation": request.param, "within_documents": True}
    knobs = common(tiny, tmp_path, "pretrain") | {"noise": {"min_masking_rate": 0.6}, "attention": attention}
    return PretrainParams.model_validate(knobs)


def cross_entropies(params, rows):
    """{(row, column): cross-entropy} for the corrupted positions of one batch. The noise does not depend on tokens."""
    tokenizer = load_tokenizer(params.model)
    kernel = params.attention.implementation
    model = Qwen3LLadaForMaskedLM.from_pretrained(params.model, attn_implementation=kernel)
    loss = batch_loss(params, tokenizer, model.config, torch.device("cpu"))
    source = Source(Rows(rows), batch_settings(params, tokenizer, training=True, seed=0, micro_batch_size=len(rows)))
    batch = next(source.steps(0)).micro_batches[0]
    with torch.no_grad():
        found = loss(MaskedDiffusionObjective(model), batch)
    places = [divmod(int(p), batch.tokens.shape[1]) for p in found.prepared.positions]
    indices, values = source.samples_of(0, 0), found.cross_entropy
    return {(indices[row], column): float(x) for (row, column), x in zip(places, values, strict=True)}


@pytest.mark.parametrize("padding", [[], [33, 34, 35]], ids=["whole", "padded"])
def test_a_document_is_judged_as_if_the_others_were_not_there(settings, padding):
    """A longer second row causes padding in the first."""
    rows, others = [[*FIRST, *SECOND], [*SECOND, *FIRST, *padding]], [[*FIRST, *OTHER], [*OTHER, *FIRST, *padding]]
    one, other = cross_entropies(settings, rows), cross_entropies(settings, others)
    # first row: its first document; second row: the text after the end of the second document
    kept = {place for place in one if place[0] == 0 and place[1] < len(FIRST)}
    assert len(kept) > 2
    assert {p: one[p] for p in kept} == pytest.approx({p: other[p] for p in kept}, abs=1e-5)
    across = changed(settings, attention={**settings.attention.model_dump(), "within_documents": False})
    one, other = cross_entropies(across, rows), cross_entropies(across, others)
    assert {p: one[p] for p in kept} != pytest.approx({p: other[p] for p in kept}, abs=1e-3)


def test_training_and_evaluation_keep_to_it(settings):
    """Training loss and evaluation differ from those with attention across documents."""
    packed = Rows([[*FIRST, *SECOND], [*OTHER, *FIRST]])
    steps, losses = [], []
    for within in (True, False):
        run = start(changed(settings, attention={"within_documents": within}), seed=1, template="plain")
        layout = {"seed": 1, "micro_batch_size": 2}
        run.data = run.held_out = Source(packed, batch_settings(run.params, run.tokenizer, training=True, **layout))
        losses.append(evaluate(run)[0])
        steps.append(next(training_steps(run, StopRequest())).read().loss)
    assert abs(losses[0] - losses[1]) > 1e-4 < abs(steps[0] - steps[1])


def test_fine_tuning_has_no_such_knob():
    with pytest.raises(ValueError, match="within_documents"):
        SftParams.model_validate({"attention": {"within_documents": True}})


def test_documents_need_an_end(settings):
    tokenizer = load_tokenizer(settings.model)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"within_documents must be false: the tokenizer has no EOS"):
        batch_loss(settings, tokenizer, None, torch.device("cpu"))
