"""Conversion of a Qwen3 checkpoint to qwen3llada: the same tensors, a mask token, and code without the causal mask.

Weight files are copied, so memory does not grow with the model. Only files that need a new row for the mask token are
rewritten, one at a time in memory.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from qwen3llada.artifacts import mark, new_folder, write_json
from qwen3llada.destinations import MODEL, check_destinations
from qwen3llada.modeling.loading import files_blamed
from qwen3llada.modeling.mask_token import MaskToken, give_mask_token, load_any_tokenizer
from qwen3llada.modeling.qwen3_checkpoint import EMBEDDING, HEAD, check_dtypes, check_tensors, read_qwen3_config
from qwen3llada.modeling.shards import INDEX, Shards, find_shards
from qwen3llada.section import Section

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Qwen3Config

    from qwen3llada.modeling.configuration_qwen3llada import Qwen3LLadaConfig

# Copied unchanged. The tokenizer's other files are rewritten with the mask token.
COPIED = ("generation_config.json", "vocab.json", "merges.txt", "LICENSE*", "NOTICE*")
# Code that stands alone: a checkpoint brings it to where this package is not installed.
REMOTE_FILES = ("configuration_qwen3llada.py", "modeling_qwen3llada.py", "custom_generate/generate.py")
ROWS_AT_ONCE = 4096  # of the embedding, for its mean in float64


class ConvertParams(Section):
    """Source checkpoint, destination folder and mask token."""

    src: str = Field("data/raw/model", min_length=1, description="folder of a Qwen3 checkpoint, or a hub model id")
    dst: str = Field("out/qwen3llada-converted", min_length=1, description="folder that is written, or replaced")
    mask_token: Literal["auto"] | Annotated[int, Field(ge=0, le=10_000_000)] = Field(
        "auto",
        description="auto = the tokenizer's mask token, else <|mask|> at its first free id; or the id of a row of the "
        "embedding (0 to 10,000,000)",
    )


@dataclass(frozen=True)
class ConversionReport:
    """Summary of a conversion. `rows_added`: to the embedding."""

    source: str
    destination: str
    files: list[str]
    tensors: int
    parameters: int
    bytes: int
    dtypes: list[str]
    tied: bool
    vocab_size: int
    rows_added: int
    mask_token: str
    mask_token_id: int
    mask_token_origin: str
    shadowed_token: str | None


def convert_checkpoint(
    source: str | Path, destination: str | Path, mask_token: int | Literal["auto"] = "auto"
) -> ConversionReport:
    """Convert the Qwen3 checkpoint in folder `source` to a qwen3llada checkpoint in `destination`.

    Every tensor is copied bit for bit with its dtype, into a file of the same name. Embedding and head grow only if
    there is no free row for the mask token. `destination` is replaced once everything is written, and only if it is
    empty or was written by this project (`check_destinations`).
    Raises: FileNotFoundError or InputError, before anything is written, naming the problem with source, mask token or
    destination; OSError if the disk is full. `destination` is then unchanged.
    """
    from transformers import Qwen3ForCausalLM

    source, destination = Path(source), Path(destination)
    check_destinations({"dst": (destination, MODEL)}, {"src": source})
    qwen3 = read_qwen3_config(source)
    shards = find_shards(source)
    check_dtypes(shards)  # checked first, because quantised models also have other tensors
    check_tensors(shards, Qwen3ForCausalLM, qwen3)
    tokenizer = load_any_tokenizer(source)
    mask = give_mask_token(tokenizer, mask_token, qwen3.vocab_size)
    config = _config(qwen3, mask, source)
    added = mask.vocab_size - qwen3.vocab_size
    with new_folder(destination, size=shards.bytes) as folder:
        for pattern in COPIED:
            for file in source.glob(pattern):
                shutil.copyfile(file, folder / file.name)
        tokenizer.save_pretrained(folder)
        _write_code(folder)
        config.save_pretrained(folder)
        _write_weights(shards, folder, added)
        mark(folder)
    return _report(source, destination, config, mask, added)


def _report(
    source: Path, destination: Path, config: "Qwen3LLadaConfig", mask: MaskToken, added: int
) -> ConversionReport:
    written = find_shards(destination)
    return ConversionReport(
        source=str(source),
        destination=str(destination),
        files=written.files,
        tensors=len(written.tensors),
        parameters=sum(tensor.size for tensor in written.tensors.values()),
        bytes=written.bytes,
        dtypes=sorted({tensor.dtype for tensor in written.tensors.values()}),
        tied=bool(config.tie_word_embeddings),
        vocab_size=config.vocab_size,
        rows_added=added,
        mask_token=mask.token,
        mask_token_id=mask.id,
        mask_token_origin=mask.origin,
        shadowed_token=mask.shadowed,
    )


def _config(qwen3: "Qwen3Config", mask: MaskToken, source: Path) -> "Qwen3LLadaConfig":
    from qwen3llada.modeling.modeling_qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM

    values = qwen3.to_dict()
    for ours in ("model_type", "architectures", "use_cache", "auto_map", "transformers_version"):
        values.pop(ours, None)
    values |= {"vocab_size": mask.vocab_size, "mask_token_id": mask.id}
    with files_blamed(source):  # the config class rejects a sliding window, for example
        return Qwen3LLadaConfig(**values, architectures=[Qwen3LLadaForMaskedLM.__name__])


def _write_code(folder: Path) -> None:
    """Copy the files that `trust_remote_code` runs."""
    here = Path(__file__).parent
    (folder / "custom_generate").mkdir()
    for name in REMOTE_FILES:
        shutil.copyfile(here / name, folder / name)


def _write_weights(shards: Shards, folder: Path, added: int) -> None:
    """Copy the weight files. `added` rows go to the embedding and to the head, if the files have one."""
    from safetensors.torch import save_file

    grown = [name for name in (EMBEDDING, HEAD) if added and name in shards.tensors]
    sizes = {"total_size": 0, "total_parameters": 0}  # increase of the index's numbers by growth
    for file in shards.files:
        here = [name for name in grown if shards.tensors[name].file == file]
        if not here:
            shutil.copyfile(shards.folder / file, folder / file)
            continue
        tensors, metadata = shards.load(file)
        for name in here:
            before, tensors[name] = tensors[name], with_mean_rows(tensors[name], added)
            sizes["total_size"] += tensors[name].nbytes - before.nbytes
            sizes["total_parameters"] += tensors[name].numel() - before.numel()
        save_file(tensors, folder / file, metadata=metadata)
        del tensors, before  # keeps only one file in memory
    if shards.index is not None:
        known = shards.index.get("metadata") or {}
        known = {key: value + sizes.get(key, 0) if key in sizes else value for key, value in known.items()}
        write_json(folder / INDEX, {**shards.index, "metadata": known})


def with_mean_rows(weight: "Tensor", added: int) -> "Tensor":
    """`weight` [V,D] with `added` more rows, each the mean of all V rows: a neutral vector of the usual scale."""
    import torch

    rows, width = weight.shape
    total = torch.zeros(width, dtype=torch.float64)
    for chunk in weight.split(ROWS_AT_ONCE):
        total += chunk.sum(0, dtype=torch.float64)
    return torch.cat([weight, (total / rows).to(weight.dtype).expand(added, width)])
