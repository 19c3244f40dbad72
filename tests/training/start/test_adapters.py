"""LoRA: what is trained, what is saved, resumed and merged."""

import json
from importlib.util import find_spec

import pytest
import torch
from runs import changed, checkpoint
from safetensors.torch import load_file

from qwen3llada import Qwen3LLadaForMaskedLM
from qwen3llada.artifacts import MARKER
from qwen3llada.destinations import MODEL, check_destinations
from qwen3llada.errors import InputError
from qwen3llada.evaluation.eval_loss import EvalLossParams, evaluate_model
from qwen3llada.modeling.loading import merged
from qwen3llada.sampling.dialogue.text_model import TextModel
from qwen3llada.training.loop import train
from qwen3llada.training.run_params import AdapterParams
from qwen3llada.training.start.adapters import add_adapters

# Not imported here: it imports torch's compiler, and each process of the suite reads this file.
pytestmark = pytest.mark.skipif(find_spec("peft") is None, reason="needs peft, not installed")


@pytest.fixture
def lora(pretraining):
    adapter = {"method": "lora", "rank": 2, "alpha": 4, "dropout": 0.1, "target_modules": ["q_proj", "down_proj"]}
    return changed(pretraining, adapter=adapter, save_steps=3, save_total_limit=9, max_steps=6)


def test_lora_trains_adapters_alone_and_merges_them(lora, tiny):
    summary = train(lora, seed=1)
    assert summary["trained_parameters"] == 2 * 2 * (16 + 16 + 24 + 16)  # layers · rank · (in + out of both targets)
    base, final = load_file(tiny / "model/model.safetensors"), load_file(lora.dst / "model.safetensors")
    assert base.keys() == final.keys()
    moved = {name.split(".")[-2] for name in base if not torch.equal(base[name], final[name])}
    assert moved == {"q_proj", "down_proj"}
    again = merged(tiny / "model", lora.dst / "adapter", dtype=torch.float32).state_dict()
    torch.testing.assert_close({name: again[name] for name in final}, final)
    Qwen3LLadaForMaskedLM.from_pretrained(lora.dst)


def test_lora_resumes_bit_for_bit_with_dropout(lora, tmp_path):
    train(lora, seed=1)
    paths = {"dst": tmp_path / "other/model", "reports": tmp_path / "other/reports", "output_dir": tmp_path / "other"}
    resumed = changed(lora, **paths, resume_from=str(checkpoint(lora, 3)))
    train(resumed, seed=1)
    whole, again = (load_file(params.dst / "model.safetensors") for params in (lora, resumed))
    torch.testing.assert_close(again, whole, rtol=0, atol=0)


def test_adapters_alone_are_saved_on_request_and_read_with_their_base(lora, tmp_path):
    params = changed(lora, adapter=lora.adapter.model_dump() | {"merge": False}, attention={"block_length": 4})
    train(params, seed=1, template="chat")
    (lora.dst / MARKER).unlink()
    check_destinations({"dst": (lora.dst, MODEL)}, {})  # adapters are recognised without the marker
    assert (lora.dst / "adapter_model.safetensors").is_file()
    modules = json.loads((lora.dst / "adapter_config.json").read_text())["target_modules"]
    assert modules == sorted(params.adapter.target_modules)  # the same bytes in every run
    assert not (lora.dst / "model.safetensors").exists()
    paths = {"dst": tmp_path / "whole", "reports": tmp_path / "other/reports", "output_dir": tmp_path / "other"}
    whole = changed(params, **paths, adapter=lora.adapter.model_dump())
    train(whole, seed=1, template="chat")
    adapters, full = TextModel.load(lora.dst).model, TextModel.load(whole.dst).model
    for name, tensor in full.state_dict().items():
        torch.testing.assert_close(adapters.state_dict()[name], tensor)
    for name in ("attention_policy", "block_length", "prompt_template", "mask_token_id"):
        assert getattr(adapters.config, name) == getattr(full.config, name)
    assert adapters.config.block_length == 4
    losses = [
        evaluate_model(model, lora.data, params, EvalLossParams(rounds=1), seed=0)["loss"]
        for model in (lora.dst, whole.dst, lora.model)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] != pytest.approx(losses[2], rel=1e-5)  # the base without them

    with pytest.raises(ValueError, match="holds adapters alone, which cannot be trained on"):
        train(changed(lora, model=lora.dst, dst=tmp_path / "again", resume_from=""), seed=1)
    config = lora.dst / "adapter_config.json"
    config.write_text(config.read_text().replace(str(lora.model), "out/gone"))
    with pytest.raises(ValueError, match="adapters for the model out/gone, which is not there"):
        TextModel.load(lora.dst)


def test_knobs_of_adapters_are_refused_where_there_are_none():
    assert AdapterParams.model_validate(AdapterParams(method="none").model_dump()).method == "none"
    with pytest.raises(ValueError, match="rank=200 has no effect under method=none: leave it at 16"):
        AdapterParams(rank=200)


def test_the_modules_of_adapters_are_saved_in_one_order(tiny):
    """peft keeps a set, whose order in `adapter_config.json` differs from run to run."""
    model, params = Qwen3LLadaForMaskedLM.from_pretrained(tiny / "model"), AdapterParams(method="lora")
    wrapped = add_adapters(model, params, resume_from=None, checkpointed=False)
    assert wrapped.peft_config["default"].target_modules == sorted(params.target_modules)


def test_the_output_projection_takes_no_adapter(lora):
    """The loss reads its weight and would miss the adapter's part."""
    adapter = lora.adapter.model_dump() | {"target_modules": ["q_proj", "lm_head"]}
    with pytest.raises(InputError, match=r"^adapter\.target_modules=\['lm_head'\] must be linear layers .*'v_proj'\]$"):
        train(changed(lora, adapter=adapter), seed=1)


def test_unknown_target_and_qlora_without_gpu_are_refused(lora):
    adapter = lora.adapter.model_dump()
    with pytest.raises(ValueError, match=r"target_modules=\['query'\] must be linear layers"):
        train(changed(lora, adapter=adapter | {"target_modules": ["query"]}), seed=1)
    if not torch.cuda.is_available():
        pytest.importorskip("bitsandbytes", reason="qlora needs bitsandbytes first, which is not installed")
        with pytest.raises(ValueError, match="qlora needs a CUDA device"):
            train(changed(lora, bf16=True, adapter=adapter | {"method": "qlora"}), seed=1)
