"""The start of a run: check the inputs and build everything that the training loop works on."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import qwen3llada.modeling.modeling_qwen3llada  # noqa: F401  # registers our model type for AutoTokenizer
from qwen3llada.corpus.tokens.tokenizer import load_tokenizer
from qwen3llada.errors import InputError
from qwen3llada.modeling.positions import check_positions
from qwen3llada.modeling.streamed import StreamedWeights, materialise
from qwen3llada.objective.objective import MaskedDiffusionObjective
from qwen3llada.training.checkpoints.fingerprint import Fingerprint, run_fingerprint
from qwen3llada.training.checkpoints.folder import CheckpointError, TrainerState, collect_remains, describe_others
from qwen3llada.training.checkpoints.resuming import find_checkpoint
from qwen3llada.training.checkpoints.save_and_restore import restore, restored_data
from qwen3llada.training.checkpoints.shards import is_sharded
from qwen3llada.training.cuda.gradient_sum import GradientSum
from qwen3llada.training.run import Run
from qwen3llada.training.run_params import RunParams
from qwen3llada.training.start.adapters import add_adapters
from qwen3llada.training.start.claiming import claim_destinations
from qwen3llada.training.start.groups_and_schedule import build_optimizer, build_schedule
from qwen3llada.training.start.memory_estimate import (
    LEAST,
    MemoryEstimate,
    choose_plan,
    device_memory,
    estimate_memory,
    largest_micro_batch,
    over_budget,
)
from qwen3llada.training.start.model_and_processes import (
    check_implementation,
    compile_layers,
    graph_layers,
    is_compiled,
    load_model,
    make_accelerator,
    with_optimizer_that_runs,
)
from qwen3llada.training.start.sharding import Sharded, ShardingPlan, mesh_of, model_copies, precision, shard
from qwen3llada.training.start.task import Task, denoising
from qwen3llada.training.watch.flops import FlopCounter, flop_counter
from qwen3llada.training.watch.peak_memory import resident_bytes

if TYPE_CHECKING:
    from accelerate import Accelerator

    from qwen3llada.training.cuda.layer_graphs import LayerGraphs


def start(params: RunParams, *, seed: int, template: str, task: Task | None = None) -> Run:
    """Check the inputs and set up a run, at its beginning or at the checkpoint to resume from.

    `task`: what is learnt; None: `Denoising`.

    Raises: InputError in one line for inputs that are missing or do not fit together, and as `find_checkpoint`.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # for loading and saving files
    accelerator = make_accelerator(params)
    claim_destinations(params, accelerator)
    params = with_optimizer_that_runs(params, accelerator)
    _check_attention(params, accelerator)
    tokenizer = load_tokenizer(params.model)
    learnt = task or denoising(params)
    data, held_out = learnt.data(tokenizer, accelerator, seed=seed, template=template)
    total_steps = params.max_steps or params.epochs * data.steps_per_epoch
    ours = run_fingerprint(
        params,
        batches=data.settings,
        total_steps=total_steps,
        template=template,
        more_code=learnt.code,
        free=learnt.free,
    )
    ours |= learnt.facts()
    checkpoint, state = _checkpoint(params, accelerator, ours)

    torch.manual_seed(seed)
    before = 0 if accelerator.device.type == "cuda" else resident_bytes()
    model, adapted = _model(params, accelerator, template, checkpoint, data.settings.mask_token_id)
    flops, memory, plan = _estimates(params, model, accelerator, before)
    weights = checkpoint if checkpoint and adapted is None else params.model
    prepared = _prepare(params, model, accelerator, plan, weights)
    run = Run(
        **prepared._asdict(),
        params=params,
        accelerator=accelerator,
        model=model,
        adapted=adapted,
        lr_schedule=build_schedule(prepared.optimizer.optimizer, params.optim, total_steps),
        loss=learnt.loss(tokenizer, model.config, accelerator.device),
        data=data.in_run(total_steps),
        held_out=held_out,
        total_steps=total_steps,
        tokenizer=tokenizer,
        flops=flops,
        memory=memory,
        fingerprint=ours,
        state=state,
        points=[],
        resumed_from=checkpoint,
        last_checkpoint=checkpoint,
        began_after=state.global_step,
    )
    if checkpoint is not None:
        restore(run, checkpoint)
    learnt.begin(run, None if checkpoint is None else restored_data(checkpoint))
    return run


def _check_attention(params: RunParams, accelerator: "Accelerator") -> None:
    """Raises InputError if the attention kernel cannot run, or the model has too few positions.

    A missing config.json is reported later, when the model is loaded.
    """
    check_implementation(params, accelerator.device)
    if (params.model / "config.json").is_file():
        check_positions(params.model, {"max_length": params.max_length, **params.attention.block_lengths})


def _checkpoint(params: RunParams, accelerator: "Accelerator", ours: Fingerprint) -> tuple[Path | None, TrainerState]:
    """The checkpoint to resume from and its state; None and a new state to start anew. All ranks must call this."""
    from accelerate.utils import broadcast_object_list

    told: list[Any] = [None, None]  # what was found, and why nothing can be
    if accelerator.is_main_process:
        collect_remains(params.output_dir)
        if others := describe_others(params.output_dir, ours):
            print(others, file=sys.stderr)
        try:
            told[0] = find_checkpoint(params.resume_from, params.output_dir, ours)
        except CheckpointError as error:
            told[1] = str(error)
    if accelerator.num_processes > 1:
        broadcast_object_list(told)  # rank 0 alone hashes the files
    if told[1] is not None:
        raise CheckpointError(told[1])
    return told[0] or (None, TrainerState(fingerprint=ours, processes=accelerator.num_processes))


def _model(
    params: RunParams, accelerator: "Accelerator", template: str, checkpoint: Path | None, mask_token_id: int
) -> tuple[Any, Any]:
    """The model, with the checkpoint's weights if there is one; and the peft model around it, or None."""
    folder = checkpoint if checkpoint and params.adapter.method == "none" else params.model
    model = load_model(params, folder, accelerator)
    if model.config.mask_token_id != mask_token_id:
        raise InputError(f"{model.config.mask_token_id=} must be that of the tokenizer, {mask_token_id}")
    model.config.prompt_template = template
    checkpointed = params.gradient_checkpointing
    return model, add_adapters(model, params.adapter, resume_from=checkpoint, checkpointed=checkpointed)


def _estimates(
    params: RunParams, model: Any, accelerator: "Accelerator", before: int
) -> tuple[FlopCounter, MemoryEstimate, ShardingPlan | None]:
    """FLOPs of a step; the memory estimate, which is printed; and what FSDP2 keeps gathered, None without FSDP2.

    before: bytes of the process without the model.
    """
    device, sharded = accelerator.device, accelerator.is_fsdp2
    shards = accelerator.num_processes // model_copies(accelerator) if sharded else 1
    options: dict[str, Any] = {
        "shards": shards,
        "device": device.type,
        "compiled": is_compiled(params, device),
        "process": before,
        "ddp": not sharded and accelerator.num_processes > 1,
    }
    usable = device_memory(device)
    plan = _agreed_plan(accelerator, choose_plan(params, model, usable, **options)) if sharded else None
    memory = estimate_memory(params, model, plan=plan, **options)
    more = ""
    if usable is not None:
        largest = largest_micro_batch(params, model, usable, plan=plan and LEAST, **options)
        memory = replace(memory, largest=largest)
        more = over_budget(params, memory, usable)
    accelerator.print(f"estimated memory on each device: {memory}{more}", file=sys.stderr)
    if plan is not None:
        accelerator.print(f"FSDP2: {plan}", file=sys.stderr)
    return flop_counter(model, checkpointed=params.gradient_checkpointing), memory, plan


def _agreed_plan(accelerator: "Accelerator", plan: ShardingPlan) -> ShardingPlan:
    """Rank 0's plan, because ranks with other plans would wait for each other's collectives forever."""
    from accelerate.utils import broadcast_object_list

    if not accelerator.state.fsdp_plugin.reshard_after_forward:
        plan = replace(plan, gathered=True)  # the launcher asks for it
    told = [plan]
    if accelerator.num_processes > 1:
        broadcast_object_list(told)
    return told[0]


class _Prepared(NamedTuple):
    """Fields of `Run`."""

    objective: nn.Module
    optimizer: Any
    optimizer_name: str
    compiled: bool
    graphs: "LayerGraphs | None"
    sharded: Sharded | None


def _prepare(
    params: RunParams, model: Any, accelerator: "Accelerator", plan: ShardingPlan | None, weights: Path
) -> _Prepared:
    """Compile the layers, shard or wrap the objective, and build the optimiser. `weights`: folder of the model."""
    compiled = compile_layers(model, params, accelerator.device)
    # Loading leaves a model in evaluation mode, without dropout and checkpointing. A later change would compile anew.
    objective: Any = MaskedDiffusionObjective(model).train()
    if plan is not None:
        sharded = _shard(objective, params, accelerator, plan, weights)
        optimizer = accelerator.prepare_optimizer(build_optimizer(objective, params.optim))
        return _Prepared(objective, optimizer, params.optim.name, compiled, None, sharded)
    objective.to(accelerator.device)
    objective, prepared = accelerator.prepare(objective, build_optimizer(objective, params.optim))
    reduction = GradientSum(objective) if isinstance(objective, DistributedDataParallel) else None
    graphs = graph_layers(model, params, accelerator, reduction) if compiled else None
    return _Prepared(objective, prepared, params.optim.name, compiled, graphs, None)


def _shard(
    objective: MaskedDiffusionObjective, params: RunParams, accelerator: "Accelerator", plan: ShardingPlan, folder: Path
) -> Sharded:
    """Shard the objective over all ranks. The weights are read from `folder` group by group, if they have not been."""
    model, device = objective.model, accelerator.device
    empty = any(p.is_meta for p in model.parameters())
    weights = StreamedWeights(folder, model) if empty and not is_sharded(folder) else None

    def make_real(module: nn.Module) -> None:
        if empty:
            materialise(model, module, weights, device)

    return shard(objective, mesh_of(accelerator), precision(params), plan, before=make_real)
