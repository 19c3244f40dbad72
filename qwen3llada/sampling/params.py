"""The sampler's parameters, and the arguments of one call of the stage."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from qwen3llada.errors import InputError
from qwen3llada.sampling.dialogue.extraction import checked
from qwen3llada.sampling.remasking import SCORES
from qwen3llada.sampling.unmasking import UNMASKING
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
    position_temperature: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Noise on the log of any score, so that positions are drawn instead of ranked; 0 to 1,000,000, 0 is"
        " off",
    )
    unmask: Annotated[str, one_of(UNMASKING)] = Field(
        "fixed",
        description="How many positions a step commits. fixed: the even share of a block; threshold, factor,"
        " entropy_bound: all that are sure enough by the knob of that name, in as many steps as that takes (faster, may"
        " change tokens)",
    )
    confidence_threshold: float = Field(
        0.9, ge=0, le=1, description="threshold: commit a token of more than this probability, 0 to 1"
    )
    factor: float = Field(
        1.0,
        ge=0,
        le=1e6,
        description="factor: commit the n most probable tokens as long as (n + 1)(1 - probability of the n-th) is less"
        " than this, 0 to 1,000,000",
    )
    entropy_bound: float = Field(
        0.1,
        ge=0,
        le=1e6,
        description="entropy_bound: commit the positions of least entropy as long as their sum without the largest is"
        " less than this, in nats, 0 to 1,000,000",
    )
    edit_threshold: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Replace a committed token of the current block where another one has become likelier and has more"
        " than this probability, 0 to 1; 0 is off",
    )
    max_post_edit_steps: int = Field(
        16,
        ge=0,
        le=MAX_TOKENS,
        description="edit_threshold: most passes over a block without masks, which end as soon as one replaces nothing;"
        " 0 to 1,048,576",
    )
    remask: int = Field(
        0,
        ge=0,
        le=MAX_TOKENS,
        description="Least sure tokens of a block that each step of a loop masks again and decides anew, 0 to 1,048,576"
        " (ReMDM); 0 is off, else needs unmask fixed",
    )
    remask_start: float = Field(
        0.875, ge=0, le=1, description="remask: share of a block that is committed when the loop begins, 0 to 1"
    )
    remask_steps: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKENS,
        description="remask: steps of the loop, on top of a block's, 1 to 1,048,576; null: as many as the block's",
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
        if self.remask and self.unmask != "fixed":
            raise ValueError(
                f"remask={self.remask} must not be combined with unmask={self.unmask}: only unmask=fixed has the steps"
                " that its loop repeats"
            )
        if self.position_temperature and self.unmask == "entropy_bound":
            raise ValueError(
                f"position_temperature={self.position_temperature} must not be combined with unmask=entropy_bound,"
                " which takes positions by their entropy alone"
            )
        return self

    @property
    def revises(self) -> bool:
        """Whether a committed token may still change before its block is finished."""
        return self.edit_threshold > 0 or self.remask > 0


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

    def unread(self) -> dict[str, str]:
        """What concerns the held-out prompts alone, if others are asked; and in a chat, the size of a batch."""
        if self.files() is None:
            return {}
        mode = "--interactive" if self.interactive else "--prompts" if self.prompts else "--prompt"
        names = ["samples", "extract", *(["batch_size"] if self.interactive else [])]
        return dict.fromkeys(names, f"with {mode}")

    def reads(self) -> list[str]:
        """The model, and the held-out data if no prompts are given."""
        return [*(["${sft.data}"] if self.files() is None else []), str(self.model or "${sft.dst}")]
