"""Launcher variables that would change a run are refused; those set by `accelerate launch` are not."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from runs import changed, free_port

from qwen3llada.training.loop import train
from qwen3llada.training.start.launcher import check_launcher, check_processes, launched_processes

ROOT = Path(__file__).parents[3]
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "the knob is gradient_accumulation_steps"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "0"}, "the knob is gradient_accumulation_steps"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "the knobs are bf16 and fp16"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "the knobs are bf16 and fp16"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "the knob is compile"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is not supported"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism are not supported"),
        ({"ACCELERATE_FP8_BACKEND": "TE"}, "would change the run"),
        ({"ACCELERATE_OF_A_LATER_VERSION": "7"}, "would change the run"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP_VERSION=1 must be 2: FSDP1 is not supported"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP1 is not supported"),
        (FSDP2 | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "the knob is gradient_checkpointing"),
        (FSDP2 | {"FSDP_IGNORED_MODULES": "lm_head"}, "would not be summed"),
        (FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"}, "cannot be kept on the host"),
        (FSDP2 | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "read layer by layer in any case"),
        (FSDP2 | {"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, "must be TRANSFORMER_BASED_WRAP"),
        (FSDP2 | {"FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen3MLP"}, "must be Qwen3DecoderLayer"),
        (FSDP2 | {"PARALLELISM_CONFIG_TP_SIZE": "2", "ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "are not supported"),
    ],
)
def test_what_would_change_the_arithmetic_is_refused_by_name(pretraining, environ, words):
    with pytest.raises(ValueError, match=words) as caught:
        check_launcher(pretraining, environ)
    assert list(environ)[-1] in str(caught.value) or "FSDP_VERSION" in str(caught.value)


@pytest.mark.parametrize("file", ["ddp", "fsdp2", "hsdp", None])
def test_what_accelerate_launch_sets_is_taken(pretraining, monkeypatch, file):
    """The launcher's own functions make the environment, with our files and without any."""
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.delenv(name)
    chosen = ["--config_file", str(ROOT / f"launch/{file}.yaml")] if file else ["--num_processes", "1", "--cpu"]
    argv = [*chosen, "--main_process_port", str(free_port()), "-m", "stages.pretrain"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(argv))
    environ = prepare_multi_gpu_env(args) if file else prepare_simple_launcher_cmd_env(args)[1]
    assert environ["ACCELERATE_MIXED_PRECISION"] == "no"
    assert ("ACCELERATE_USE_FSDP" in environ) == (file in ("fsdp2", "hsdp"))
    assert ("ACCELERATE_USE_PARALLELISM_CONFIG" in environ) == (file == "hsdp")
    check_launcher(pretraining, environ)


def test_a_precision_that_the_knobs_ask_for_is_taken(pretraining):
    check_launcher(changed(pretraining, bf16=True), {"ACCELERATE_MIXED_PRECISION": "bf16"})


def test_gradients_that_accelerate_would_divide_are_refused_before_a_step(pretraining, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ValueError, match="ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 must not be set"):
        train(pretraining, seed=1)
    assert not pretraining.output_dir.exists()


@pytest.mark.parametrize("name", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_any_launchers_number_of_processes_counts(name):
    assert launched_processes({name: "4"}) == (name, 4)
    assert launched_processes({"WORLD_SIZE": "32", name: "32"}) == ("WORLD_SIZE", 32)
    alone = SimpleNamespace(num_processes=1, is_fsdp2=False)
    with pytest.raises(ValueError, match=f"{name}=4 processes were launched, of which 1 met"):
        check_processes(alone, name, 4, {})
    with pytest.raises(ValueError, match=f"{name}='four' must be the number of processes"):
        launched_processes({name: "four"})


def test_fsdp2_that_would_not_run_is_refused():
    """As on a machine without a GPU, where Accelerate uses DDP."""
    ddp = SimpleNamespace(num_processes=2, is_fsdp2=False, device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"ACCELERATE_USE_FSDP=true asks for FSDP2.* without it on cpu"):
        check_processes(ddp, "WORLD_SIZE", 2, FSDP2)
    ddp.is_fsdp2 = True
    check_processes(ddp, "WORLD_SIZE", 2, FSDP2)
