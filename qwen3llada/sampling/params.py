"""The sampler's parameters, and the arguments of one call of the stage."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from qwen3llada.errors import InputError
from qwen3llada.sampling.dialogue.extraction import checked
from qwen3llada.sampling.remasking import SCORES
from qwen3llada.section import MAX_TOKENS, Section, one_of
from qwen3llada.tracked import Request


class DecodeParams(Section):
    """How answers are decoded. Null means the checkpoint's config decides."""

    steps: int = Field(
        128,
        ge=1,
        le=MAX_TOKENS,
        description="Forward passes for an answer, 1 to 1,048,576, split evenly over its blocks; a block with more of"
        " them than tokens is decoded one token at a time, and those left over are not run",
    )
    gen_length: int = Field(
        128,
        ge=1,
        le=MAX_TOKENS,
        description="Tokens of an answer; 1 to 1,048,576, with the prompt what the model takes",
    )
    block_length: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKENS,
        description="Tokens of a block, 1 to 1,048,576 and no more than the model takes; blocks are decoded left to"
        " right; null: the checkpoint's",
    )
    temperature: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Temperature of the tokens' Gumbel noise, 0 to 1,000,000; 0 takes the most likely token",
    )
    cfg_scale: float = Field(
        0.0, ge=0, le=1000, description="Classifier-free guidance, 0 to 1,000; 0 is off, else costs double"
    )
    remasking: Annotated[str, one_of(SCORES)] = Field(
        "low_confidence",
        description=f"Score by which masked positions are committed: {', '.join(SCORES)}",
    )
    remasking_temperature: float = Field(
        1.0,
        ge=0,
        le=1e6,
        description="random_topk: noise on the score at a block's start, annealed to 0; 0 to 1,000,000",
    )
    unmask: Literal["fixed", "threshold"] = Field(
        "fixed",
        description="fixed: the even share of a block per step; threshold: all that are confident enough, in as many"
        " steps as that takes (faster, may change tokens)",
    )
    confidence_threshold: float = Field(
        0.9, ge=0, le=1, description="threshold: commit a token of at least this probability, 0 to 1"
    )
    block_attention: bool | None = Field(
        None, description="true: attention policy block; false: full; null: the policy the checkpoint was trained with"
    )
    parallel_blocks: bool = Field(False, description="Decode all blocks at once: same tokens, needs policy block")
    cache: Literal["none", "dual"] = Field(
        "none",
        description="dual: reuse keys and values around a block, renewed at each block (policy full; approximate)",
    )
    backend: Literal["auto", "eager", "graph"] = Field(
        "auto",
        description="graph: each step is one CUDA graph; eager: one operation after the other; auto: graph on GPU",
    )

    @model_validator(mode="after")
    def _agree(self) -> "DecodeParams":
        if self.parallel_blocks and self.block_attention is False:
            raise ValueError("parallel_blocks=true must not be combined with block_attention=false")
        if self.cache == "dual" and (self.block_attention or self.parallel_blocks):
            raise ValueError("cache=dual must not be combined with block_attention=true or parallel_blocks=true")
        return self


class AnswerParams(DecodeParams):
    """How a batch of prompts is answered."""

    batch_size: int = Field(
        16, ge=1, le=65536, description="Prompts decoded together, 1 to 65,536; answers do not depend on it"
    )


class SampleParams(AnswerParams):
    """How the stage answers prompts: which held-out prompts, and in which precision."""

    samples: int = Field(
        200, ge=0, le=1_000_000_000, description="Held-out prompts to answer, up to 1e+09, at even distances; 0: all"
    )
    bf16: bool = Field(False, description="Compute in bfloat16 instead of float32")
    extract: Annotated[str, AfterValidator(checked)] = Field(
        "none",
        description="What of an answer is compared with the reference. none: all of it; last_number: the last number;"
        " after:TEXT: what follows the last TEXT on its line; regex:PATTERN: the last match, or its first group."
        " Numbers are compared as numbers",
    )


class SampleRequest(Request):
    """Arguments of one call of the stage. Without any, it answers the held-out prompts for the reports."""

    model: Path | None = Field(None, description="Folder of the checkpoint; null: the fine-tuned one, sft.dst")
    prompt: list[str] = Field([], description="A question; may be repeated")
    prompts: Path | None = Field(
        None, description='File of JSON lines: "question", {"prompt": …, "system": …} or a record of a conversation'
    )
    system: str | None = Field(None, description="System prompt of each question given here")
    interactive: bool = Field(False, description="Chat in the terminal; /help there lists the commands")
    out: Path | None = Field(None, description="Write the answers there as JSON lines; null: print them")
    trace: Path | None = Field(None, description="Write a page (HTML) there that plays how the answers were denoised")

    @model_validator(mode="after")
    def _agree(self) -> "SampleRequest":
        asked = bool(self.prompt or self.prompts)
        if self.prompt and self.prompts:
            raise InputError("prompt must not be combined with prompts")
        if self.interactive and (asked or self.out or self.trace):
            raise InputError(
                "interactive must not be combined with prompt, prompts, out or trace (in the chat: /trace)"
            )
        if not asked and (self.out or self.trace):
            raise InputError("out and trace need a prompt or prompts")
        if not asked and not self.interactive and self.system is not None:
            raise InputError("system needs a prompt, prompts or interactive")
        return self

    def files(self) -> dict[str, Path] | None:
        """Files to write for the given prompts; None if the held-out prompts are answered."""
        if not (self.prompt or self.prompts or self.interactive):
            return None
        return {flag: path for flag, path in (("--out", self.out), ("--trace", self.trace)) if path is not None}

    def reads(self) -> list[str]:
        """The model, and the held-out data if no prompts are given."""
        return [*(["${sft.data}"] if self.files() is None else []), str(self.model or "${sft.dst}")]
