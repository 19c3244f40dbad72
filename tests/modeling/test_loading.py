"""Loading errors are one line of ours, whatever Transformers raises; a loaded checkpoint is complete."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM
from qwen3llada.errors import InputError
from qwen3llada.modeling.loading import files_blamed, load_pretrained
from qwen3llada.modeling.positions import check_positions

NORM = "model.layers.0.input_layernorm.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8, "vocab_size": 40}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
    Qwen3LLadaForMaskedLM(Qwen3LLadaConfig(**sizes, **heads, mask_token_id=39)).save_pretrained(folder)
    return folder


def config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), ["config.json is missing"]),
        (text("config.json", "{"), ["config.json", "line 1 is not JSON"]),
        (text("config.json", "[]"), ["is a None checkpoint", "qwen3llada"]),
        (config(model_type="llama"), ["is a llama checkpoint", "qwen3llada"]),
        (config(hidden_size="wide"), ["hidden_size", "expected int"]),
        (config(hidden_act="nope"), ["KeyError 'nope'"]),
        (config(mask_token_id=999), ["mask_token_id=999", "[0, 40)"]),
        (config(hidden_size=24), ["has shape", "16] instead of [", "more"]),
        (lambda folder: (folder / "model.safetensors").unlink(), ["no file named model.safetensors"]),
        (text("model.safetensors", ""), ["header too small"]),
        (weights(lambda tensors: tensors.pop(NORM)), [f"{NORM} is missing"]),
        (
            weights(lambda tensors: tensors.update({NORM.replace("0", "1"): tensors[NORM] + 0})),
            ["layers.1.", "not one of"],
        ),
        (weights(lambda tensors: tensors.update({NORM: tensors[NORM].to(torch.int8)})), [NORM, "dtype I8", "float32"]),
    ],
    ids=range(13),
)
def test_a_broken_checkpoint_is_one_line(whole, tmp_path, damage, words):
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    damage(folder)
    with pytest.raises(InputError) as caught:
        load_pretrained(folder)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_whole_checkpoint_is_loaded(whole):
    model = load_pretrained(whole, dtype=torch.bfloat16)
    torch.testing.assert_close(dict(model.state_dict()), load_file(whole / "model.safetensors"), check_dtype=False,
                               rtol=0.01, atol=0.01)  # fmt: skip


@pytest.mark.parametrize("kept", [False, True])
def test_a_tied_head_may_be_in_the_files_or_not(whole, tmp_path, kept):
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    config(tie_word_embeddings=True)(folder)
    weights(lambda tensors: None if kept else tensors.pop("lm_head.weight"))(folder)
    assert load_pretrained(folder).config.tie_word_embeddings


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (torch.OutOfMemoryError("full"), AttributeError("a defect")):
        with pytest.raises(type(error)), files_blamed(tmp_path):
            raise error


def test_lengths_beyond_the_positions_name_their_knob(whole):
    check_positions(whole, {"max_length": 32})
    with pytest.raises(InputError, match="max_length=33 must not exceed the model's max_position_embeddings=32"):
        check_positions(whole, {"block_length": 16, "max_length": 33})


@pytest.mark.parametrize("large", [False, True])
def test_only_large_weights_have_a_progress_bar(whole, monkeypatch, capfd, large):
    from transformers.utils import logging

    monkeypatch.setattr("qwen3llada.modeling.loading.BAR_BYTES", 0 if large else 2**30)
    logging.enable_progress_bar()
    load_pretrained(whole)
    assert ("Loading weights" in capfd.readouterr().err) == large
    assert logging.is_progress_bar_enabled(), "left as it was"
