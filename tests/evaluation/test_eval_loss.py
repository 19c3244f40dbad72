"""Held-out losses of a saved model against their plain form, from the logits of all positions."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM
from qwen3llada.artifacts import read_json, write_json
from qwen3llada.batches.samples import Spread
from qwen3llada.batches.settings import batch_settings
from qwen3llada.batches.source import Source
from qwen3llada.corpus.tokens.mapped_tokens import load_tokens
from qwen3llada.corpus.tokens.packing import MANIFEST, new_sequences
from qwen3llada.corpus.tokens.tokenizer import identity, load_tokenizer
from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.errors import InputError
from qwen3llada.evaluation.eval_loss import EvalLossParams, evaluate_model
from qwen3llada.training.params import PretrainParams

SETTINGS = PretrainParams(loss_impl="dllm", pad_to_multiple_of=4, max_length=12)
EOS, MASK = 30, 31
SEED = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """float32/ and bfloat16/, the same model stored in each, and heldout/ with nine samples."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("evaluated")
    words = {f"w{i}": i for i in range(EOS)} | {"<eos>": EOS, "<mask>": MASK}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", mask_token="<mask>")
    shapes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    shapes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    torch.manual_seed(0)
    model = Qwen3LLadaForMaskedLM(Qwen3LLadaConfig(**shapes, initializer_range=0.5, mask_token_id=MASK))
    for dtype in (torch.bfloat16, torch.float32):  # the float32 one holds the rounded weights
        name = str(dtype).removeprefix("torch.")
        model.to(dtype).save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 13, 9)
    with new_sequences(folder / "heldout") as writer:
        writer.add(rng.integers(0, EOS, lengths.sum()).astype(np.int32), lengths)
        writer.close()
    write_json(folder / "heldout" / MANIFEST, identity(load_tokenizer(folder / "float32")) | {"template": None})
    return folder


def measured(folder, name, settings=SETTINGS, **knobs):
    params = EvalLossParams(**{"micro_batch_size": 4, "rounds": 2} | knobs)
    return evaluate_model(folder / name, folder, settings, params, seed=SEED)


def plain_losses(folder, *, rounds=2):
    """Each loss from full logits in float32, over the same noisy batches."""
    tokenizer = load_tokenizer(folder / "float32")
    model = Qwen3LLadaForMaskedLM.from_pretrained(folder / "float32", attn_implementation="eager").eval()
    data = Spread(load_tokens(folder / "heldout"), 0)
    source = Source(data, batch_settings(SETTINGS, tokenizer, training=False, seed=SEED, micro_batch_size=4))
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in LOSSES}
    for batch in (batch for number in range(rounds) for step in source.steps(number) for batch in step.micro_batches):
        with torch.no_grad():
            logits = model(input_ids=batch.noised.tokens, attention_mask=batch.valid.long()).logits
        for name, loss in LOSSES.items():
            denominator = loss.denominator(batch.tokens, valid=batch.valid)
            value = loss(logits, batch.tokens, batch.noised, mask_token_id=MASK, valid=batch.valid)
            sums[name] += torch.tensor([float(value) * denominator, denominator], dtype=torch.float64)
    return {name: float(total / count) for name, (total, count) in sums.items()}


def test_every_loss_is_its_plain_form(folder):
    results = measured(folder, "float32")
    expected = plain_losses(folder)
    assert {name: results[name] for name in LOSSES} == pytest.approx(expected, rel=1e-4)
    assert (results["loss_impl"], results["loss"], results["samples"]) == ("dllm", results["dllm"], 9)
    assert len({round(results[name], 6) for name in LOSSES}) == len(LOSSES)


def test_the_noise_of_training_changes_nothing_and_that_of_the_measurement_does(folder):
    training = {"schedule": "cosine", "t_range": (0.3, 0.8), "min_masking_rate": 0.5, "random_length_prob": 0.5}
    trained_otherwise = PretrainParams.model_validate(SETTINGS.model_dump() | {"noise": training})
    expected = measured(folder, "float32")
    assert measured(folder, "float32", trained_otherwise) == expected
    for other in training.items():
        assert measured(folder, "float32", noise=dict([other]))["loss"] != expected["loss"], other


def test_a_bfloat16_checkpoint_is_measured_in_float32_unless_asked_for_bf16(folder):
    assert {tensor.dtype for tensor in load_file(folder / "bfloat16/model.safetensors").values()} == {torch.bfloat16}
    in_float32 = measured(folder, "bfloat16", bf16=False)
    assert in_float32 == measured(folder, "float32", bf16=False)
    in_bf16 = measured(folder, "bfloat16", bf16=True)
    assert in_bf16["loss"] != in_float32["loss"]
    assert in_bf16["loss"] == pytest.approx(in_float32["loss"], rel=0.02)


def test_the_same_call_gives_the_same_numbers_and_fewer_samples_others(folder):
    assert measured(folder, "float32") == measured(folder, "float32")
    few = measured(folder, "float32", samples=3)
    assert few["samples"] == 3
    assert few["loss"] != measured(folder, "float32")["loss"]


def test_data_of_another_tokenizer_are_refused(folder, tmp_path):
    import shutil

    shutil.copytree(folder / "heldout", tmp_path / "heldout")
    path = tmp_path / "heldout" / MANIFEST
    write_json(path, read_json(path) | {"tokenizer_sha256": "0" * 64})
    with pytest.raises(ValueError, match="was made with another tokenizer than that of the model"):
        evaluate_model(folder / "float32", tmp_path, SETTINGS, EvalLossParams(), seed=SEED)


def test_a_folder_without_a_model_is_one_line(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no model: config\.json is missing"):
        evaluate_model(tmp_path, folder, SETTINGS, EvalLossParams(), seed=SEED)


def test_a_loss_that_is_no_number_names_the_model_and_the_loss(folder, tmp_path):
    shutil.copytree(folder / "float32", tmp_path / "broken")
    weights = load_file(tmp_path / "broken/model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, tmp_path / "broken/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"broken: its held-out \w+ loss is nan, not a finite number$"):
        evaluate_model(tmp_path / "broken", folder, SETTINGS, EvalLossParams(rounds=1), seed=SEED)
