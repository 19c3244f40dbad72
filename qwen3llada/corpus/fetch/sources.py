"""Parameters of the sources of model, text and conversations."""

import glob
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from qwen3llada.corpus.conversations.prompts import Overflow, Template
from qwen3llada.corpus.conversations.records import Turns
from qwen3llada.errors import InputError
from qwen3llada.section import Section

BUILTIN, MIXTURE = "builtin", "mixture"


class ModelSource(Section):
    """The Qwen3 checkpoint to start from."""

    source: str = Field(
        default=BUILTIN,
        min_length=1,
        description="builtin (a tiny Qwen3 made here), a local folder, or a Hugging Face model id",
    )
    revision: str | None = Field(
        default=None, description="branch, tag or commit of the hub repository; null = main. Only for a hub id"
    )


class MixtureSource(Section):
    """One source of a mixture."""

    name: str = Field(min_length=1, description="as in the section around it, but neither builtin nor mixture")
    config: str | None = Field(
        default=None, description="configuration of a hub data set or of a copy of one; null = its default"
    )
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub data set; null = main")
    split: str = Field(default="train", min_length=1, description="split, or a slice of it")
    weight: float = Field(
        default=1.0,
        ge=1e-6,
        le=1e6,
        description="its share of the rows, in proportion to the other weights (1e-06 to 1,000,000)",
    )


class DataSource(Section):
    """A data set: which rows to use, and which of them to hold out from training."""

    name: str = Field(
        default=BUILTIN,
        min_length=1,
        description="builtin, a Hugging Face data set id, or a local file, folder or glob: parquet, jsonl, json, csv, "
        "txt (each also .gz or .zst), or Arrow folders saved by datasets; mixture = the sources listed below",
    )
    mixture: list[MixtureSource] = Field(
        default=[],
        description="with name: mixture, the sources: {name, config, revision, split, weight} each. Their rows are "
        "interleaved by weight until the first source has no more",
    )
    config: str | None = Field(
        default=None,
        description="configuration of a hub data set (wikitext-2-raw-v1, say) or of a copy of one; null = its default",
    )
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub data set; null = main")
    split: str = Field(
        default="train",
        min_length=1,
        description="split to train on, also a slice of it such as train[:1%] or train[100:200]",
    )
    heldout_name: str | None = Field(
        default=None, description="another source for the held-out data; null = the same source"
    )
    heldout_split: str | None = Field(
        default=None, description="split that is held out from training; null = none of its own"
    )
    heldout_fraction: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the training split to hold out (0 = none, to below 1), chosen by a hash of each row's "
        "text or first prompt, without case and white space, so that equal ones stay together",
    )
    columns: list[str] = Field(default=[], description="columns to keep; empty = all")

    @model_validator(mode="after")
    def _one_way_to_hold_out(self):
        if (self.name == MIXTURE) != (len(self.mixture) > 1):
            raise InputError(f"mixture must list two sources or more with name: {MIXTURE}, and none without")
        if self.name == MIXTURE and (self.config or self.revision or self.split != "train"):
            raise InputError(f"config, revision and split are those of each source with name: {MIXTURE}")
        if self.name == MIXTURE and self.heldout_split and not self.heldout_name:
            raise InputError(f"heldout_split needs a heldout_name with name: {MIXTURE}")
        own = self.heldout_name is not None or self.heldout_split is not None
        if self.name == BUILTIN:
            for key in ("config", "revision", "heldout_name", "heldout_split", "columns"):
                if getattr(self, key):
                    raise InputError(f"{key} must be empty with name: {BUILTIN}, which brings its own held-out data")
            if self.heldout_fraction or self.split != "train":
                raise InputError(f"heldout_fraction must be 0 and split train with name: {BUILTIN}")
        elif own == (self.heldout_fraction > 0):
            raise InputError(
                "exactly one must be given: heldout_name and/or heldout_split, or heldout_fraction above 0"
            )
        return self


class TextData(DataSource):
    """Text for pretraining, and how it becomes sequences."""

    streaming: bool = Field(
        default=False,
        description="true = shards are tokenized and packed while training; local ones are read before to count text. "
        "Needs pretrain.max_steps, a source of whole splits with its own held-out data, and packing",
    )
    text_field: str = Field(
        default="auto",
        min_length=1,
        description="column of the text; auto = text, content, raw, document, …, else the one that reads like text",
    )
    txt_unit: Literal["file", "paragraph", "line"] = Field(
        default="file",
        description="what a document is in a .txt file: all of it, what stands between blank lines, or a line",
    )
    pack_to_max_length: bool = Field(
        default=True,
        description="true = documents one after the other, EOS after each, cut into sequences of pretrain.max_length; "
        "false = each document starts a sequence of its own, a long one is continued in the next",
    )
    remainder: Literal["drop", "pad"] = Field(
        default="drop",
        description="what becomes of the last, shorter sequence when packing: dropped, or kept and padded in its batch",
    )
    num_proc: int = Field(
        default=2, ge=1, le=512, description="processes that tokenize (1 to 512); the result does not depend on it"
    )

    @model_validator(mode="after")
    def _can_be_streamed(self):
        if not self.streaming:
            return self
        if self.name in (BUILTIN, MIXTURE):
            raise InputError(f"streaming must be false with name: {self.name}")
        for key, why in {
            "heldout_fraction": "held-out data need a heldout_name or heldout_split",
            "columns": "only the column of the text is read",
        }.items():
            if getattr(self, key):
                raise InputError(f"{key} must be empty with streaming: true, {why}")
        if not self.pack_to_max_length or self.remainder != "drop":
            raise InputError("pack_to_max_length must be true and remainder drop with streaming: true")
        return self


class ConversationData(DataSource):
    """Conversations for fine-tuning, and how they become prompts and answers."""

    template: Template = Field(
        default="plain",
        description="form of a prompt: plain lines, or the tokenizer's chat template. It is stored with the checkpoint",
    )
    turns: Turns = Field(
        default="all",
        description="which of the human→gpt pairs that are taught become samples: first, last or all; the turns before"
        " a pair are part of its prompt",
    )
    overflow: Overflow = Field(
        default="drop",
        description="samples longer than sft.max_length are dropped, or prompts lose their start, or answers their end",
    )
    num_proc: int = Field(
        default=2, ge=1, le=512, description="processes that tokenize (1 to 512); the result does not depend on it"
    )


def local_sources(raw: Path, model: ModelSource, text: TextData, conversations: ConversationData) -> dict[str, str]:
    """Local paths that are read, by knob. For a glob: its first file in the folder `raw`, if there is one."""
    given = _given(model, text, conversations)
    for knob, name in given.items():
        if glob.has_magic(name):
            found = glob.glob(str(Path(name).expanduser()), recursive=True)
            given[knob] = next((file for file in found if raw.absolute() in Path(file).absolute().parents), "")
    return {knob: name for knob, name in given.items() if name}


def check_sources(model: ModelSource, text: TextData, conversations: ConversationData) -> None:
    """Raise InputError naming a knob that gives a path on this machine where nothing is."""
    for knob, name in _given(model, text, conversations).items():
        if name in (BUILTIN, MIXTURE):
            continue
        from qwen3llada.corpus.fetch.local import is_local  # with pyarrow

        path = Path(name).expanduser()
        try:
            empty = is_local(name) and not path.exists() and not glob.glob(str(path), recursive=True)
        except InputError as error:
            raise InputError(f"{knob}: {error}") from error
        if empty:
            raise InputError(f"{knob}: {name}: no such file or folder")


def _given(model: ModelSource, text: TextData, conversations: ConversationData) -> dict[str, str]:
    """The names of all sources by knob."""
    given = {"model.source": model.source}
    for section, data in (("pretrain_data", text), ("sft_data", conversations)):
        given |= {f"{section}.name": data.name, f"{section}.heldout_name": data.heldout_name or ""}
        given |= {f"{section}.mixture.{number}": source.name for number, source in enumerate(data.mixture)}
    return {knob: name for knob, name in given.items() if name}
