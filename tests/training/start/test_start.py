"""Inputs that do not fit together give one line, before anything is written. A run starts in training mode."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from runs import changed

from qwen3llada.training.loop import optimiser_step
from qwen3llada.training.start import start as starting
from qwen3llada.training.start.memory_estimate import PLANS
from qwen3llada.training.start.start import start
from qwen3llada.training.stopping import StopRequest


def refused(params, message):
    with pytest.raises(ValueError, match=message) as error:
        start(params, seed=1, template="plain")
    assert "\n" not in str(error.value)
    assert not params.output_dir.exists()
    assert not params.dst.exists()


def test_a_mask_token_that_is_not_the_tokenizers(pretraining, tmp_path):
    shutil.copytree(pretraining.model, tmp_path / "other")
    config = tmp_path / "other/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"mask_token_id": 7}))
    refused(changed(pretraining, model=tmp_path / "other"), "mask_token_id=7 must be that of the tokenizer, 41")


def test_samples_that_are_longer_than_allowed(pretraining):
    short = changed(pretraining, max_length=8)
    refused(short, "22 samples of up to 16 tokens must be at least one, none longer than max_length=8")


def test_a_folder_without_a_model(pretraining, tmp_path):
    shutil.copytree(pretraining.model, tmp_path / "other")
    (tmp_path / "other/config.json").unlink()
    refused(
        changed(pretraining, model=tmp_path / "other"), "must be the folder of a Qwen3-LLaDA model: it has no config"
    )


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_data_of_another_tokenizer(pretraining, tmp_path, split):
    shutil.copytree(pretraining.data, tmp_path / "data")
    path = tmp_path / "data" / split / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_sha256": "0" * 64}))
    other = changed(pretraining, data=tmp_path / "data")
    refused(other, f"{split}: was made with another tokenizer than that of the model .*: the vocabulary or its rules")


def test_prompts_of_another_template(fine_tuning, tmp_path):
    shutil.copytree(fine_tuning.data, tmp_path / "data")
    path = tmp_path / "data/train/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"template": "chat"}))
    refused(changed(fine_tuning, data=tmp_path / "data"), "its prompts have template=chat, the model's have plain")


def test_text_without_prompts_for_answers_that_are_padded(pretraining, fine_tuning):
    refused(
        changed(fine_tuning, data=pretraining.data),
        "has no prompts, but answer_padding=block needs prompts with answers; the stage tokenize_pack makes them",
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has the kernel")
def test_flex_attention_without_a_gpu(pretraining):
    attention = pretraining.attention.model_dump() | {"implementation": "flex_attention"}
    refused(changed(pretraining, attention=attention), "attention.implementation=flex_attention needs a CUDA device")


def test_flash_attention_4_where_it_cannot_run(pretraining):
    attention = {"implementation": "flash_attention_4", "policy": "block_causal", "block_length": 4}
    refused(changed(pretraining, attention=attention), "attention.implementation=flash_attention_4 needs bf16=true, ")


@pytest.mark.parametrize(("checkpointed", "calls"), [(False, 1), (True, 2)])
def test_dropout_and_checkpointing_act_from_the_first_step(pretraining, checkpointed, calls):
    """A checkpointed layer runs once more in the backward pass. Loading leaves the layers in evaluation mode."""
    run = start(changed(pretraining, gradient_checkpointing=checkpointed), seed=1, template="plain")
    assert all(module.training for module in run.objective.modules())
    seen = []
    run.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: seen.append(1))
    step = next(iter(run.data.steps(epoch=0)))
    optimiser_step(run, step, StopRequest())
    assert len(seen) == calls * len(step.micro_batches)


@pytest.mark.parametrize("plan", PLANS)
def test_the_launcher_may_ask_for_weights_that_stay_gathered(plan):
    """`fsdp_reshard_after_forward: false`; true leaves it to the memory estimate."""
    for asked in (False, True):
        plugin = SimpleNamespace(reshard_after_forward=asked)
        accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin), num_processes=1)
        agreed = starting._agreed_plan(accelerator, plan)
        assert agreed == (plan if asked else replace(plan, gathered=True))
