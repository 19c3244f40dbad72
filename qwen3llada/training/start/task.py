"""What a run learns: where its data come from, what its loss is. `Denoising` is pretraining's and SFT's task."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from qwen3llada.batches.samples import Spread, TokenDataset, TokenStream
from qwen3llada.batches.settings import batch_settings
from qwen3llada.batches.source import Source
from qwen3llada.batches.trajectories import Trajectories
from qwen3llada.corpus.text.text_stream import STREAM_FILE, TextStream
from qwen3llada.corpus.tokens.mapped_tokens import load_tokens
from qwen3llada.corpus.tokens.tokenizer import check_data
from qwen3llada.errors import InputError
from qwen3llada.objective.batch_loss import BatchLoss, batch_loss
from qwen3llada.training.checkpoints.fingerprint import hash_files
from qwen3llada.training.params import SftParams, TrainParams
from qwen3llada.training.run import Run
from qwen3llada.training.run_params import RunParams

if TYPE_CHECKING:
    from accelerate import Accelerator


class Task(Protocol):
    """What a run learns."""

    @property
    def code(self) -> tuple[str, ...]:
        """Modules of the package that determine the weights, beside those of every run."""

    @property
    def free(self) -> tuple[str, ...]:
        """Knobs that do not determine the weights, beside those of every run."""

    def data(
        self, tokenizer: Any, accelerator: "Accelerator", *, seed: int, template: str
    ) -> tuple[Source, Source | None]:
        """Training data, and held-out data for the training loss, if that is measured. Raises InputError if wrong."""

    def facts(self) -> dict[str, Any]:
        """What else determines the weights, for the fingerprint."""

    def loss(self, tokenizer: Any, config: Any, device: torch.device) -> BatchLoss:
        """The loss, for a model of that `config`."""

    def begin(self, run: Run, carried: dict[str, Any] | None) -> None:
        """Called before the first step. `carried`: what the run's data put into the checkpoint."""


@dataclass(frozen=True)
class Denoising:
    """To undo the noise of texts or answers."""

    params: TrainParams
    code: tuple[str, ...] = ()
    free: tuple[str, ...] = ()

    def data(
        self, tokenizer: Any, accelerator: "Accelerator", *, seed: int, template: str
    ) -> tuple[Source, Source | None]:
        found = _sources(self.params, tokenizer, accelerator, seed)
        _check_data(self.params, tokenizer, template)
        return found

    def facts(self) -> dict[str, Any]:
        """The trajectories, where the training data are those."""
        path = _trajectories(self.params)
        files = [] if path is None else sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        return {"trajectories": hash_files(files)} if files else {}

    def loss(self, tokenizer: Any, config: Any, device: torch.device) -> BatchLoss:
        return batch_loss(self.params, tokenizer, config, device)

    def begin(self, run: Run, carried: dict[str, Any] | None) -> None:
        pass


def denoising(params: RunParams) -> Denoising:
    """The task of pretraining and SFT. Raises TypeError for another section, which must bring its own task."""
    if not isinstance(params, TrainParams):
        raise TypeError(f"{type(params).__name__} needs a task of its own")
    return Denoising(params)


def _sources(
    params: TrainParams, tokenizer: Any, accelerator: "Accelerator", seed: int
) -> tuple[Source, Source | None]:
    """Training and held-out data; None for the latter if no held-out loss is measured."""
    layout: dict[str, Any] = {
        "seed": seed,
        "micro_batch_size": params.micro_batch_size,
        "num_processes": accelerator.num_processes,
        "process_index": accelerator.process_index,
        "num_workers": params.num_workers,
    }
    accumulation: dict[str, Any] = {"gradient_accumulation_steps": params.gradient_accumulation_steps}
    settings = batch_settings(params, tokenizer, training=True, **layout, **accumulation)
    data = Source(_train_data(params, tokenizer), settings)
    if not params.do_eval_loss:
        return data, None
    samples = Spread(load_tokens(params.data / "heldout"), params.eval_samples)
    return data, Source(samples, batch_settings(params, tokenizer, training=False, **layout))


def _check_data(params: TrainParams, tokenizer: Any, template: str) -> None:
    """Raises InputError unless the data were tokenized with the model's tokenizer and template.

    A stream needs no check: the model's tokenizer encodes it during training.
    """
    streamed = (params.data / "train" / STREAM_FILE).is_file()
    for split in [*([] if streamed else ["train"]), *(["heldout"] if params.do_eval_loss else [])]:
        check_data(params.data / split, tokenizer, template)


def _trajectories(params: TrainParams) -> Path | None:
    """The rollouts that are the training data; None: the tokenized data are."""
    return params.trajectories if isinstance(params, SftParams) else None


def _train_data(params: TrainParams, tokenizer: Any) -> TokenDataset | TokenStream:
    if (params.data / "train" / STREAM_FILE).is_file():
        stream = TextStream(params.data / "train", tokenizer)
        if stream.sample_length > params.max_length:
            raise InputError(f"max_length={params.max_length} must be {stream.sample_length} or more, as streamed")
        _check_prompts(params, there_are=False)
        return stream
    path = _trajectories(params)
    dataset: TokenDataset
    if path is None:
        path, dataset = params.data / "train", load_tokens(params.data / "train")
    else:
        assert isinstance(params, SftParams)
        dataset = Trajectories(path, params.least_reward)
    longest = int(dataset.lengths.max()) if len(dataset) else 0
    if not 0 < longest <= params.max_length:
        raise InputError(
            f"{path}: {len(dataset)} samples of up to {longest} tokens must be at least one,"
            f" none longer than max_length={params.max_length}"
        )
    _check_prompts(params, there_are=dataset[0].prompt_length is not None)
    return dataset


def _check_prompts(params: TrainParams, *, there_are: bool) -> None:
    """Raises InputError if answers are to be padded, but the data have no prompts."""
    if params.padding_of_answers != "none" and not there_are:
        raise InputError(
            f"{params.data}: has no prompts, but answer_padding={params.padding_of_answers} needs prompts with answers;"
            " the stage tokenize_pack makes them of conversations (sft_data)"
        )
