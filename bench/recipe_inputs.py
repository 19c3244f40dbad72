"""The parameters and the prepared data of `bench.recipes`. Imports torch only when called."""

from pathlib import Path
from typing import TYPE_CHECKING

from bench.recipe_list import merged

if TYPE_CHECKING:
    from qwen3llada.params import Params


def read_params(overlay: Path) -> "Params":
    from qwen3llada.params import load

    return load(Path("params.yaml"), overlay)


def builtin(folder: Path) -> "Params":
    """The built-in model and world of configs/ci.yaml, prepared in `folder` as the stages do."""
    from qwen3llada.corpus.fetch.download import download
    from qwen3llada.corpus.tokens.tokenize import tokenize_corpora
    from qwen3llada.modeling.convert import convert_checkpoint

    params = read_params(Path("configs/ci.yaml"))
    text, chats = params.pretrain_data, params.sft_data
    download(folder / "raw", model=params.model, text=text, conversations=chats, world=params.builtin)
    convert_checkpoint(folder / "raw/model", folder / "converted", "auto")
    tokenize_corpora(
        folder / "raw/text", folder / "raw/conversations", folder / "tokenized", folder / "reports",
        tokenizer_folder=folder / "raw/model", text=text, conversations=chats,
        pretrain_length=params.pretrain.max_length, sft_length=params.sft.max_length,
    )  # fmt: skip
    changes = {
        "convert": {"src": str(folder / "raw/model"), "dst": str(folder / "converted")},
        "pretrain": {"model": folder / "converted", "data": folder / "tokenized/pretrain"},
        "sft": {"data": folder / "tokenized/sft"},
    }
    return type(params).model_validate(merged(params.model_dump(by_alias=True), changes))
