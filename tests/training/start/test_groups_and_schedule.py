"""Parameter groups, learning rates, and the replacement of optimisers that cannot run."""

import itertools
import json
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from runs import changed, curves, elsewhere, weights
from transformers import get_scheduler

from qwen3llada import Qwen3LLadaForMaskedLM
from qwen3llada.training.loop import train
from qwen3llada.training.params import OptimParams, PretrainParams
from qwen3llada.training.run import Run
from qwen3llada.training.start import model_and_processes as setup
from qwen3llada.training.start.groups_and_schedule import (
    build_optimizer,
    build_schedule,
    optimizer_that_runs,
    parameter_groups,
    rate_factor,
    warmup_and_decay,
)
from qwen3llada.training.start.model_and_processes import with_optimizer_that_runs
from qwen3llada.training.start.optimizers import OPTIMIZERS, Optimizer


def test_norms_and_embeddings_do_not_decay(tiny):
    model = Qwen3LLadaForMaskedLM.from_pretrained(tiny / "model")
    decayed, kept = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert all(names[id(p)].endswith("_proj.weight") for p in decayed["params"])
    assert all("norm" in names[id(p)] or "embed" in names[id(p)] for p in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_an_untied_head_does_not_decay_and_frozen_parameters_are_left_out(tiny):
    model = Qwen3LLadaForMaskedLM.from_pretrained(tiny / "model")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.model.layers[0].requires_grad_(False)
    decayed, kept = parameter_groups(model, 0.1)
    assert any(p is model.lm_head.weight for p in kept["params"])
    frozen = {id(p) for p in model.model.layers[0].parameters()}
    assert not frozen & {id(p) for group in (decayed, kept) for p in group["params"]}


def rates(steps, **options):
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = build_schedule(optimizer, OptimParams(**options), steps)
    seen = []
    for _ in range(steps):
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", lambda i: (20 - i) / 16),
        ("cosine", lambda i: (1 + math.cos(math.pi * (i - 4) / 16)) / 2),
        ("constant_with_warmup", lambda i: 1.0),
    ],
)
def test_schedules_follow_their_formulas(name, expected):
    seen = rates(20, scheduler=name, warmup_ratio=0.2)
    assert seen[:4] == pytest.approx([0, 0.25, 0.5, 0.75])
    assert seen[4:] == pytest.approx([expected(i) for i in range(4, 20)])


def test_warmup_stable_decay_is_flat_in_the_middle_and_falls_at_the_end():
    seen = rates(20, scheduler="warmup_stable_decay", warmup_ratio=0.2, decay_ratio=0.3)
    assert seen[4:14] == pytest.approx([1.0] * 10)
    assert all(later < earlier for earlier, later in itertools.pairwise(seen[14:]))
    assert len(rates(3, scheduler="warmup_stable_decay", warmup_ratio=0.5, decay_ratio=0.5)) == 3  # both round up


@pytest.mark.parametrize("name", ["linear", "cosine", "constant_with_warmup", "warmup_stable_decay"])
@pytest.mark.parametrize("ratios", [(0.0, 0.0), (0.1, 0.2), (0.5, 0.5), (1.0, 0.0), (0.0, 1.0)])
def test_schedules_are_those_of_transformers(name, ratios):
    """To the bit, up to and including the state after the last step."""
    for steps in (1, 2, 7, 50):
        warmup, decay = warmup_and_decay(name, *ratios, steps)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        given = {"num_decay_steps": decay} if name == "warmup_stable_decay" else {}
        theirs = get_scheduler(
            name, optimizer, num_warmup_steps=warmup, num_training_steps=steps, scheduler_specific_kwargs=given
        )
        (factor,) = theirs.lr_lambdas
        for step in range(steps + 1):
            assert rate_factor(name, warmup, decay, steps, step) == factor(step), (steps, step)


CPU, CUDA = torch.device("cpu"), torch.device("cuda")
EIGHT_BIT = [name for name, optimizer in OPTIMIZERS.items() if optimizer.bitsandbytes]


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_8_bit_optimisers_fall_back_without_a_gpu_and_say_so_once(name, caplog):
    with caplog.at_level(logging.WARNING):
        assert optimizer_that_runs(OptimParams(name=name), CPU, sharded=False) == "adamw"
    assert caplog.text.count(f"optim.name={name} needs a CUDA device, this runs on cpu; adamw runs instead") == 1
    pytest.importorskip(
        "bitsandbytes", reason="on a GPU the 8-bit optimisers need bitsandbytes, which is not installed"
    )
    assert optimizer_that_runs(OptimParams(name=name), CUDA, sharded=False) == name


@pytest.mark.parametrize("name", EIGHT_BIT)
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_8_bit_optimisers_are_refused_under_fsdp2_by_name(name, device):
    """The model is still on the CPU at that point; this must not cause the replacement."""
    with pytest.raises(ValueError, match=f"optim.name={name} does not work under FSDP2.* use optim.name=adamw"):
        optimizer_that_runs(OptimParams(name=name), device, sharded=True)
    assert optimizer_that_runs(OptimParams(name="adamw"), device, sharded=True) == "adamw"


def test_muon_is_refused_under_fsdp2_and_runs_elsewhere():
    with pytest.raises(ValueError, match=r"optim.name=muon does not work under FSDP2.* use optim.name=adamw"):
        optimizer_that_runs(OptimParams(name="muon"), CUDA, sharded=True)
    assert optimizer_that_runs(OptimParams(name="muon"), CPU, sharded=False) == "muon"


def test_fsdp2_refuses_a_run_with_them_before_the_model_is_loaded(pretraining, monkeypatch):
    sharded = SimpleNamespace(device=CUDA, is_fsdp2=True)
    with pytest.raises(ValueError, match=r"optim.name=adamw8bit does not work under FSDP2"):
        with_optimizer_that_runs(changed(pretraining, optim={"name": "adamw8bit"}), sharded)
    monkeypatch.setattr(Accelerator, "is_fsdp2", True)
    monkeypatch.setattr(setup, "check_adapters", lambda *_: None)  # its device
    with pytest.raises(ValueError, match=r"adapter.method=qlora does not work under FSDP2"):
        train(changed(pretraining, adapter={"method": "qlora"}, bf16=True), seed=1)


def test_8_bit_optimisers_need_bitsandbytes(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"optim.name=lion8bit needs bitsandbytes, which is not installed"):
        optimizer_that_runs(OptimParams(name="lion8bit"), CUDA, sharded=False)


def test_what_runs_is_in_the_fingerprint_and_the_summary(pretraining):
    """8 bits requested on a CPU: the checkpoint is AdamW's, and a run that requests AdamW can resume from it."""
    asked = changed(pretraining, optim={"name": "adamw8bit"}, max_steps=2, save_steps=2, do_eval_loss=False)
    assert train(asked, seed=1)["optimizer"] == "adamw"
    (saved,) = (asked.output_dir / "checkpoints").glob("*/step-2/trainer_state.json")
    state = json.loads(saved.read_text())
    assert state["fingerprint"]["optim.name"] == "adamw"


def test_a_new_entry_is_an_allowed_name_and_is_built(monkeypatch):
    def sgd(groups, lr, betas, eps):
        return torch.optim.SGD(groups, lr=lr)

    with pytest.raises(ValueError, match="name='sgd' must be one of adamw, adamw8bit, lion8bit, muon"):
        OptimParams(name="sgd")
    monkeypatch.setitem(OPTIMIZERS, "sgd", Optimizer(build=sgd, moments=0))
    params = OptimParams(name="sgd", lr=0.5)
    assert optimizer_that_runs(params, CPU, sharded=True) == "sgd"
    built = build_optimizer(torch.nn.Linear(4, 4), params)
    assert (type(built), built.defaults["lr"]) == (torch.optim.SGD, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bf16": True, "fp16": True}, "exclude each other"),
        ({"param_dtype": "bfloat16"}, "needs bf16=true"),
        ({"loss_impl": "mse"}, "must be one of guidelines, dllm, soft_ce"),
        ({"adapter": {"method": "qlora"}}, "needs bf16=true or fp16=true"),
        ({"optim": {"betas": [0.9, 1.0]}}, "less than 1"),
        (
            {"optim": {"scheduler": "warmup_stable_decay", "warmup_ratio": 0.6, "decay_ratio": 0.6}},
            "must not exceed 1",
        ),
        ({"micro_batch": 3}, "Extra inputs"),
    ],
)
def test_contradictions_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        PretrainParams.model_validate(changes)


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.3, 100.0])
def test_scaling_gradients_in_the_update_is_clipping_them_before(pretraining, tmp_path, monkeypatch, max_grad_norm):
    before = changed(pretraining, max_grad_norm=max_grad_norm, save_steps=6, do_eval_loss=False)
    train(before, seed=1)
    within = elsewhere(before, tmp_path / "within")
    monkeypatch.setattr(Run, "scales_in_update", True)
    train(within, seed=1)
    torch.testing.assert_close(weights(within), weights(before), rtol=1e-5, atol=1e-6)
    norms = [[p["train/grad_norm"] for p in curves(run, 6) if "train/grad_norm" in p] for run in (within, before)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


OTHER = {"lr": 2e-2, "betas": (0.5, 0.6), "eps": 1e-2, "weight_decay": 0.9}  # other values than `updated` has


def updated(name, device, model, **given):
    """The parameters of `model` after two steps."""
    torch.manual_seed(0)
    model = model().to(device)
    asked = {"name": name, "lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1} | given
    optimizer = build_optimizer(model, OptimParams.model_construct(**asked))  # unchecked
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 64).to(device)).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten().cpu() for p in model.parameters()])


@pytest.mark.parametrize("matrices_alone", [False, True])
@pytest.mark.parametrize("knob", OTHER)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_knob_changes_the_update_unless_it_is_listed_as_unused(name, knob, matrices_alone):
    optimizer, device = OPTIMIZERS[name], CUDA if OPTIMIZERS[name].bitsandbytes else CPU
    if optimizer.bitsandbytes:
        pytest.importorskip("bitsandbytes", reason="not installed")
        if not torch.cuda.is_available():
            pytest.skip("bitsandbytes needs a GPU")
    size = {"in_features": 64, "out_features": 80, "bias": not matrices_alone}  # large enough for 8 bits
    before = updated(name, device, lambda: torch.nn.Linear(**size))
    after = updated(name, device, lambda: torch.nn.Linear(**size), **{knob: OTHER[knob]})
    unused = {*optimizer.unused, *(optimizer.unused_for_matrices if matrices_alone else ())}
    assert torch.equal(before, after) is (knob in unused)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "lion8bit", "eps": 1e-6}, "eps=1e-06 has no effect under name=lion8bit: leave it at 1e-08"),
        (
            {"scheduler": "cosine", "decay_ratio": 0.5},
            "decay_ratio=0.5 has no effect under scheduler=cosine: leave it at 0.2",
        ),
    ],
)
def test_a_knob_without_effect_is_refused_unless_it_has_its_default(given, said):
    stated = OptimParams().model_dump()
    for default in (stated | {"name": given.get("name", "adamw")}, {"name": given.get("name", "adamw")}):
        assert OptimParams.model_validate(default)
    with pytest.raises(ValueError, match=said):
        OptimParams.model_validate(stated | given)


def test_muon_over_adapters_refuses_the_knobs_of_adamw(pretraining):
    changed(pretraining, optim={"name": "muon", "betas": [0.9, 0.99]})
    changed(pretraining, optim={"name": "muon"}, adapter={"method": "lora"})
    under = "under optim.name=muon with adapter.method=lora"
    said = rf"betas=\[0.9, 0.99\] has no effect {under}: leave it at \[0.9, 0.95\]"
    with pytest.raises(ValueError, match=said):
        changed(pretraining, optim={"name": "muon", "betas": [0.9, 0.99]}, adapter={"method": "lora"})
