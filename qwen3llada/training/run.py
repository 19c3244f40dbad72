"""A run: all that training works on, made before the first step, saved to and restored from checkpoints."""

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qwen3llada.artifacts import new_folder, read_jsonl
from qwen3llada.corpus.stream import STREAM_FILE, TextStream
from qwen3llada.corpus.token_data import load_tokens
from qwen3llada.corpus.tokenizer import load_tokenizer
from qwen3llada.evaluation.batch_loss import BatchLoss, batch_loss
from qwen3llada.evaluation.batch_source import BatchSource, Spread, batch_source
from qwen3llada.modeling.objective import MaskedDiffusionObjective
from qwen3llada.training.adapters import ADAPTER_FOLDER, add_adapters, merged
from qwen3llada.training.checkpoint import TrainerState, checkpoint_path, find_checkpoint, rotate, write_checkpoint
from qwen3llada.training.fingerprint import Fingerprint, fingerprint
from qwen3llada.training.flops import FlopCounter, flop_counter
from qwen3llada.training.memory import MemoryEstimate, estimate_memory
from qwen3llada.training.optimizer import build_optimizer, build_schedule
from qwen3llada.training.params import TrainParams
from qwen3llada.training.setup import DTYPES, compile_layers, graph_layers, load_model, make_accelerator
from qwen3llada.training.sharding import load_optimizer_state, model_state, optimizer_state, reshard

if TYPE_CHECKING:
    from accelerate import Accelerator

    from qwen3llada.corpus.micro_batches import TokenDataset, TokenStream
    from qwen3llada.training.layer_graphs import LayerGraphs

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Run:
    """What the loop and the checkpoints need."""

    params: TrainParams
    accelerator: "Accelerator"
    model: Any  # Qwen3LLadaForMaskedLM, with adapters inside if there are any
    adapted: Any  # the peft model around it, or None
    objective: nn.Module  # prepared by Accelerate
    optimizer: Any  # prepared by Accelerate
    optimizer_name: str
    schedule: torch.optim.lr_scheduler.LambdaLR
    loss: BatchLoss
    data: BatchSource
    held_out: BatchSource | None
    total_steps: int
    tokenizer: Any
    flops: FlopCounter
    memory: MemoryEstimate
    fingerprint: Fingerprint
    compiled: bool
    graphs: "LayerGraphs | None"
    state: TrainerState
    points: list[dict[str, Any]]  # of the curves, from the checkpoint
    resumed_from: Path | None
    last_checkpoint: Path | None

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def inner_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer

    @property
    def scales_in_update(self) -> bool:
        """Whether the optimiser's own kernel can scale the gradients, which saves reading and writing them once."""
        fused = self.optimizer_name == "adamw" and self.device.type == "cuda"
        return fused and self.accelerator.scaler is None and not self.accelerator.is_fsdp2

    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser trains."""
        return [p for group in self.inner_optimizer.param_groups for p in group["params"]]


def start(params: TrainParams, *, seed: int, template: str) -> Run:
    """Check what was given, and set up a run at its beginning or at the checkpoint it goes on from.

    Raises: ValueError in one line for inputs that are missing or do not fit, and as `find_checkpoint`.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of every file that is loaded or saved
    accelerator = make_accelerator(params)
    tokenizer = load_tokenizer(params.model)
    layout = {
        "seed": seed,
        "micro_batch_size": params.micro_batch_size,
        "num_processes": accelerator.num_processes,
        "process_index": accelerator.process_index,
        "num_workers": params.num_workers,
    }
    accumulation = params.gradient_accumulation_steps
    data = batch_source(_train_data(params, tokenizer), params, tokenizer, accumulation=accumulation, **layout)
    held_out = None
    if params.do_eval_loss:
        samples = Spread(load_tokens(params.data / "heldout"), params.eval_samples)
        held_out = batch_source(samples, params, tokenizer, **layout)
    total_steps = params.max_steps or params.epochs * data.steps_per_epoch
    ours = fingerprint(params, seed=seed, step_size=data.step_size, total_steps=total_steps, template=template)
    found = find_checkpoint(params.resume_from, params.output_dir, ours)
    checkpoint, state = found or (None, TrainerState(fingerprint=ours, processes=accelerator.num_processes))

    torch.manual_seed(seed)
    folder = checkpoint if checkpoint and params.adapter.method == "none" else params.model
    model = load_model(params, folder, accelerator)
    model.config.prompt_template = template
    adapted = add_adapters(model, params.adapter, resume_from=checkpoint, checkpointed=params.gradient_checkpointing)
    if model.config.mask_token_id != data.mask_token_id:
        raise ValueError(f"{model.config.mask_token_id=} must be that of the tokenizer, {data.mask_token_id}")
    flops = flop_counter(model, checkpointed=params.gradient_checkpointing)
    shards = accelerator.num_processes if accelerator.is_fsdp2 else 1
    memory = estimate_memory(params, model, shards=shards, device=accelerator.device.type)
    accelerator.print(f"estimated memory on each device: {memory}", file=sys.stderr)
    compiled = compile_layers(model, params, accelerator.device)
    graphs = graph_layers(model, params, accelerator) if compiled else None
    objective = MaskedDiffusionObjective(model)
    if not accelerator.is_fsdp2:
        objective.to(accelerator.device)
    optimizer, name = build_optimizer(objective, params.optim)
    objective, prepared = accelerator.prepare(objective, optimizer)
    run = Run(
        params=params,
        accelerator=accelerator,
        model=model,
        adapted=adapted,
        objective=objective,
        optimizer=prepared,
        optimizer_name=name,
        schedule=build_schedule(prepared.optimizer, params.optim, total_steps),
        loss=batch_loss(params, tokenizer, accelerator.device),
        data=data,
        held_out=held_out,
        total_steps=total_steps,
        tokenizer=tokenizer,
        flops=flops,
        memory=memory,
        fingerprint=ours,
        compiled=compiled,
        graphs=graphs,
        state=state,
        points=[],
        resumed_from=checkpoint,
        last_checkpoint=checkpoint,
    )
    if checkpoint is not None:
        _restore(run, checkpoint)
    return run


def save(run: Run, points: list[dict[str, Any]]) -> None:
    """Write a checkpoint of the run's present state, and remove those that are no longer to be kept. By all processes.

    Raises: OSError in one line if the disk is full; earlier checkpoints are untouched then.
    """
    from accelerate.utils import gather_object

    main = run.accelerator.is_main_process
    folder = checkpoint_path(run.params.output_dir, run.state.global_step)
    reshard(run.objective)
    weights = model_state(run.adapted or run.model, keep=main)
    optimizer = {
        "optimizer": optimizer_state(run.inner_optimizer, run.model, keep=main),
        "schedule": run.schedule.state_dict(),
        "scaler": run.accelerator.scaler.state_dict() if run.accelerator.scaler else None,
    }
    random = _gather_random(run.accelerator)
    if run.state.cursors:  # of this process's part of a stream
        gathered = gather_object([run.state.cursors])
        run.state.cursors = {position: cursor for part in gathered for position, cursor in part.items()}

    def write_files(temporary: Path) -> None:
        (run.adapted or run.model).save_pretrained(temporary, state_dict=weights)
        run.tokenizer.save_pretrained(temporary)
        for name, content in (("optimizer.pt", optimizer), ("random.pt", random)):
            with open(temporary / name, "wb") as file:  # torch would hide the system's error where it opens the file
                torch.save(content, file)
        lines = "".join(json.dumps(point) + "\n" for point in points)
        (temporary / "curves.jsonl").write_text(lines, encoding="utf-8")

    if main:
        write_checkpoint(folder, run.state, write_files, size=_checkpoint_bytes(run))
        best = int(run.state.best["step"]) if run.state.best else None
        rotate(run.params.output_dir, run.fingerprint, keep=run.params.save_total_limit, best_step=best)
    run.accelerator.wait_for_everyone()
    run.last_checkpoint = folder


def export(run: Run) -> None:
    """Write the final model to `dst` in Hugging Face format, with the tokenizer. By all processes."""
    main = run.accelerator.is_main_process
    reshard(run.objective)
    weights = model_state(run.adapted or run.model, keep=main)
    if main:
        with new_folder(run.params.dst) as temporary:
            if run.adapted is None:
                run.model.save_pretrained(temporary, state_dict=weights)
            elif run.params.adapter.merge:
                run.adapted.save_pretrained(temporary / ADAPTER_FOLDER, state_dict=weights)
                dtype = DTYPES[run.params.param_dtype]
                whole: Any = merged(run.params.model, temporary / ADAPTER_FOLDER, dtype)
                for name in ("attention_policy", "block_length", "prompt_template"):
                    setattr(whole.config, name, getattr(run.model.config, name))
                whole.save_pretrained(temporary)
            else:
                run.adapted.save_pretrained(temporary, state_dict=weights)
            run.tokenizer.save_pretrained(temporary)
    run.accelerator.wait_for_everyone()


def _restore(run: Run, checkpoint: Path) -> None:
    """Everything but the weights, which were loaded with the model."""
    stored = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
    load_optimizer_state(run.inner_optimizer, run.model, stored["optimizer"])
    run.schedule.load_state_dict(stored["schedule"])
    if run.accelerator.scaler:
        run.accelerator.scaler.load_state_dict(stored["scaler"])
    random = torch.load(checkpoint / "random.pt", weights_only=True)
    if len(random) == run.accelerator.num_processes:
        mine = random[run.accelerator.process_index]
        torch.set_rng_state(mine["cpu"])
        if run.device.type == "cuda" and mine["cuda"] is not None:
            torch.cuda.set_rng_state(mine["cuda"], run.device)
    else:
        # Only dropout draws from these generators, and with other processes its draws are others in any case.
        torch.manual_seed(run.data.seed + run.state.global_step)
    run.points = list(read_jsonl(checkpoint / "curves.jsonl"))
    run.state.processes = run.accelerator.num_processes


def _gather_random(accelerator: "Accelerator") -> list[dict[str, Any]]:
    from accelerate.utils import gather_object

    cuda = torch.cuda.get_rng_state(accelerator.device) if accelerator.device.type == "cuda" else None
    return gather_object([{"cpu": torch.get_rng_state(), "cuda": cuda}])


def _checkpoint_bytes(run: Run) -> int:
    """About what a checkpoint takes: the weights that are saved, and two moments of those that are trained."""
    saved = run.model.parameters() if run.adapted is None else run.parameters()
    return sum(p.numel() * p.element_size() for p in [*saved, *run.parameters(), *run.parameters()])


def _train_data(params: TrainParams, tokenizer: Any) -> "TokenDataset | TokenStream":
    if (params.data / "train" / STREAM_FILE).is_file():
        stream = TextStream(params.data / "train", tokenizer)
        if stream.sample_length > params.max_length:
            raise ValueError(f"max_length={params.max_length} must be {stream.sample_length} or more, as streamed")
        return stream
    dataset = load_tokens(params.data / "train")
    longest = int(dataset.lengths.max()) if len(dataset) else 0
    if not 0 < longest <= params.max_length:
        raise ValueError(
            f"{params.data / 'train'}: {len(dataset)} samples of up to {longest} tokens must be at least one,"
            f" none longer than max_length={params.max_length}"
        )
    return dataset
