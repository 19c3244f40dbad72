"""The knobs of serving."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, model_validator

from qwen3llada.errors import InputError
from qwen3llada.section import Section, one_of
from qwen3llada.serving.formats import FORMATS
from qwen3llada.tracked import Request


class ExportParams(Section):
    """Which model is written in which engines' format."""

    model: Path = Field(Path("out/qwen3llada-sft"), description="Folder of the checkpoint, a whole model")
    format: Annotated[str, one_of(FORMATS)] = Field(
        "sdar", description="sdar: what SGLang, LMDeploy, JetEngine and Diffulex load as SDARForCausalLM"
    )
    dst: Path = Field(Path("out/served"), description="Folder that is written, or replaced")
    dtype: Literal["keep", "bfloat16"] = Field(
        "keep", description="keep: every tensor bit for bit; bfloat16: rounded to it, half the size of float32"
    )


class PushRequest(Request):
    """What one upload is asked."""

    repo: str | None = Field(None, description="OWNER/NAME on the hub; made, private, where there is none")
    folder: Path | None = Field(None, description="Folder of the model; null: the fine-tuned one, sft.dst")
    export: Path | None = Field(None, description="Folder of its export, uploaded below sdar/; null: none")
    public: bool = Field(False, description="Make a new repository public")
    replace_card: bool = Field(
        False, description="Replace a model card on the hub; else words written there stay, and only facts are renewed"
    )
    card: Path | None = Field(None, description="Write the model card to this file and upload nothing")

    @model_validator(mode="after")
    def _agree(self) -> "PushRequest":
        if (self.repo is None) == (self.card is None):
            raise InputError("give either repo (OWNER/NAME, to upload) or card (a file to write)")
        given = [name for name in ("export", "public", "replace_card") if getattr(self, name)]
        if self.card is not None and given:
            raise InputError(f"{given[0]} must not be combined with card, which uploads nothing")
        return self

    def files(self) -> dict[str, Path] | None:
        return {} if self.card is None else {"--card": self.card}

    def reads(self) -> list[str]:
        return [str(self.folder or "${sft.dst}"), *([str(self.export)] if self.export else [])]


class ServeParams(Section):
    """The server for one machine."""

    model: Path = Field(Path("out/qwen3llada-sft"), description="Folder of the checkpoint")
    host: str = Field("127.0.0.1", description="Address to listen at; 0.0.0.0: every network of the machine")
    port: int = Field(8000, ge=0, le=65535, description="Port, 0 to 65,535; 0: a free one")
    served_name: str | None = Field(None, description="The model's name for clients; null: its folder")
    api_key: SecretStr | None = Field(
        None, min_length=1, description="What clients must give as API key, never printed; null: nothing"
    )
    max_batch: int = Field(16, ge=1, le=65536, description="Answers decoded together, 1 to 65,536")
    max_queue: int = Field(256, ge=1, le=1_000_000, description="Answers that may wait, 1 to 1,000,000; more get 429")
    timeout_seconds: float = Field(
        300.0, gt=0, le=86_400, description="After which a request is given up, above 0, up to 86,400"
    )
    stop_seconds: int = Field(
        30, ge=1, le=86_400, description="That running answers get to finish when the server stops, 1 to 86,400"
    )
    bf16: bool = Field(False, description="Compute in bfloat16 instead of float32")
