"""`from qwen3llada import load, generate`: text to text in another project's code."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from vocabulary import EOS, MASK

from qwen3llada import generate, load
from qwen3llada.errors import InputError
from qwen3llada.sampling import sampler
from qwen3llada.sampling.sampler import SampleParams

KNOBS = {"steps": 4, "gen_length": 8, "block_length": 4, "temperature": 0.7}
PROMPTS = [[3, 5, 7], [1], [40, 41, 42, 43]]
TEXTS = [" ".join(map(str, prompt)) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load(str(checkpoint), device="cpu")


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_texts_are_answered_as_their_tokens_are(loaded, batch_size):
    expected = sampler.generate(loaded.model, PROMPTS, SampleParams(**KNOBS), seed=5, eos_token_ids=[EOS])
    answers = generate(loaded, TEXTS, seed=5, batch_size=batch_size, **KNOBS)
    words = [" ".join(str(i) for i in row.tolist() if i != EOS) for row in expected.tokens]
    assert [answer.text for answer in answers] == words
    assert [answer.prompt for answer in answers] == TEXTS


def test_one_question_has_one_answer(loaded):
    (listed,) = generate(loaded, TEXTS[:1], **KNOBS)
    alone = generate(loaded, TEXTS[0], **KNOBS)
    assert alone.text == listed.text
    assert alone.answer_tokens >= 1
    assert generate(loaded, [], **KNOBS) == []


def test_a_system_prompt_goes_before_each_question(loaded):
    assert generate(loaded, "3", system="1 2", **KNOBS).prompt.split() == ["1", "2", "3"]


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, torch.float32])
def test_loaded_as_asked(checkpoint, dtype):
    model = load(checkpoint, device=torch.device("cpu"), dtype=dtype).model
    assert str(model.dtype).endswith(str(dtype).removeprefix("torch."))
    assert model.device.type == "cpu"
    assert not model.training


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"dtype": "int8"}, "dtype=int8 must be one of float32, bfloat16"),
        ({"device": "gpu"}, "device='gpu' cannot be used here: "),
        ({"device": "cuda:99"}, "device='cuda:99' cannot be used here: "),
        ({"device": "meta"}, "device='meta' cannot be used here: "),
        ({"path": "nowhere"}, "nowhere: no model: config.json is missing"),
    ],
)
def test_what_cannot_be_loaded_is_refused(checkpoint, wanted, message):
    with pytest.raises(ValueError, match=message) as error:
        load(**{"path": checkpoint} | wanted)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("prompts", "knobs", "message"),
    [
        (
            "3",
            {"step": 4},
            r"step: unknown key \(did you mean steps\?\); allowed: backend, batch_size, block_attention",
        ),
        ("3", {"samples": 4}, "samples: unknown key; allowed: "),  # a knob of the stage, without meaning here
        ("3", {"bf16": True}, "bf16: unknown key; allowed: "),
        ("3", {"steps": 0}, "steps: given 0, .* 1 to 1,048,576"),
        ("3", {"seed": 0.5}, "seed=0.5 must be a whole number"),
        ("3", {"system": 3}, "system=3 must be text or None"),
        ([3, 5], {}, r"prompts must be a text or a list of texts, given 3; token ids .*sampling\.sampler\.generate"),
        (7, {}, "prompts must be a text or a list of texts, given 7"),
        ("3 " * 60, {}, r"prompts\[0\] of 60 tokens \+ 8 new ones must not exceed"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(loaded, prompts, knobs, message):
    with pytest.raises(ValueError, match=message):
        generate(loaded, prompts, **{"gen_length": 8} | knobs)


def test_a_network_alone_is_sampled_with_token_ids(loaded):
    with pytest.raises(ValueError, match=r"must be what qwen3llada\.load returned, given Qwen3LLadaForMaskedLM"):
        generate(loaded.model, "3")


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_no_numbers_are_refused(checkpoint, tmp_path, value):
    """Their answers would be the token 0, over and over, and no error."""
    folder, name = tmp_path / "model", "model.layers.1.mlp.up_proj.weight"
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[name][3, 5] = float(value)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"{name} holds nan or infinite values"):
        load(folder, device="cpu")


def test_a_mask_token_that_is_not_the_tokenizers_is_refused(checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mask_token_id": 5}))
    with pytest.raises(InputError, match=f"mask_token_id=5 in config.json must be that of its tokenizer, {MASK}"):
        load(folder, device="cpu")
