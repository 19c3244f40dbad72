"""A checkpoint as the folder that other engines load: Qwen3's tensors, their config, a head of its own."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qwen3llada.artifacts import mark, new_folder, write_json
from qwen3llada.destinations import EXPORT, check_destinations
from qwen3llada.errors import InputError
from qwen3llada.modeling.exported import check_exported
from qwen3llada.modeling.loading import check_is_ours, files_blamed, is_adapters_alone
from qwen3llada.modeling.mask_token import load_any_tokenizer
from qwen3llada.modeling.qwen3_checkpoint import EMBEDDING, HEAD, PLAIN_DTYPES, check_dtypes, check_tensors
from qwen3llada.modeling.shards import INDEX, Shards, find_shards
from qwen3llada.modeling.tensor_file import StreamedTensor, write_tensors
from qwen3llada.serving.formats import FORMATS, Format
from qwen3llada.serving.mask_row import losing_row, with_row

if TYPE_CHECKING:
    from torch import Tensor

ROWS_AT_ONCE = 4096  # of a tensor, which is all that is in memory
DTYPES = {"keep": None, "bfloat16": "BF16"}
# Renders a conversation as `encode_prompts` does for models that were taught with template `plain`.
PLAIN_TEMPLATE = (
    "{%- if bos_token %}{{- bos_token }}{%- endif %}{%- for message in messages %}{{- message.content + '\\n' }}"
    "{%- endfor %}"
)


@dataclass(frozen=True)
class ExportReport:
    """What was written: tensors and their bytes, the type of most of them, the answer's end, the prompts' form."""

    destination: str
    tensors: int
    bytes: int
    dtype: str
    eos_token_id: int
    template: str


def export_checkpoint(
    model: str | Path, destination: str | Path, format: str = "sdar", dtype: Literal["keep", "bfloat16"] = "keep"
) -> ExportReport:
    """Write the checkpoint in folder `model` to `destination` in a format of `FORMATS`.

    Tensors are copied a piece at a time, bit for bit or rounded to `dtype`. The head is written out also where it is
    tied to the embedding, and the mask token's row in it is one that cannot win (`mask_row`). What was written is then
    compared with the checkpoint. `destination` is replaced when all is written and compared.

    Raises: InputError before anything is written if the destination is not this project's to replace, or naming what
    about the model the format cannot express; OSError when the disk is full.
    """
    source, destination, kind = Path(model), Path(destination), FORMATS[format]
    check_destinations({"dst": (destination, EXPORT)}, {"model": source})
    config, shards = _checked(source, kind)
    tokenizer = load_any_tokenizer(source)
    ends = _ends(config, tokenizer, source)
    written = DTYPES[dtype] or shards.tensors[EMBEDDING].dtype
    with new_folder(destination, size=2 * shards.bytes) as folder:
        _write_weights(shards, folder, kind, DTYPES[dtype])
        write_json(folder / "config.json", kind.config(config, ends[0], PLAIN_DTYPES[written]))
        write_json(folder / "generation_config.json", {"eos_token_id": ends, "pad_token_id": ends[0]})
        _write_tokenizer(tokenizer, folder, config.prompt_template)
        _write_words(folder, destination, kind, config.block_length)
        check_exported(source, folder)
        mark(folder)
    files = find_shards(destination)
    return ExportReport(
        destination=str(destination),
        tensors=len(files.tensors),
        bytes=files.bytes,
        dtype=PLAIN_DTYPES[written],
        eos_token_id=ends[0],
        template=config.prompt_template,
    )


def _checked(source: Path, kind: Format) -> tuple[Any, Shards]:
    """The config and the tensor files of a whole model that the format can express. Raises InputError."""
    from qwen3llada.modeling.modeling_qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM

    check_is_ours(source)
    if is_adapters_alone(source):
        raise InputError(f"{source}: holds adapters alone; train with adapter.merge=true, which gives a whole model")
    with files_blamed(source):
        config = Qwen3LLadaConfig.from_pretrained(source, trust_remote_code=False)
    kind.check(config, source)
    shards = find_shards(source)
    check_dtypes(shards)
    check_tensors(shards, Qwen3LLadaForMaskedLM, config)
    return config, shards


def _ends(config: Any, tokenizer: Any, folder: Path) -> list[int]:
    """Ids that end an answer: first what closed the answers in training, then what the config names."""
    named = config.eos_token_id
    ids = [] if named is None else [named] if isinstance(named, int) else list(named)
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if not own + ids:
        raise InputError(f"{folder}: neither config.json nor the tokenizer names an EOS token: no answer would end")
    return list(dict.fromkeys(own + ids))


def _write_weights(shards: Shards, folder: Path, kind: Format, dtype: str | None) -> None:
    """All tensors but the head in files like the checkpoint's, and the head in one of its own, with an index."""
    head = HEAD if HEAD in shards.tensors else EMBEDDING
    files = [[name for name, t in shards.tensors.items() if t.file == file and name != HEAD] for file in shards.files]
    files = [names for names in files if names] + [[HEAD]]
    weight_map: dict[str, str] = {}
    total = 0
    for number, names in enumerate(files, start=1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors"
        if names == [HEAD]:
            tensors = [_head(shards, head, kind.mask_token_id, dtype)]
        else:
            tensors = [_streamed(shards, name, dtype) for name in names]
        write_tensors(folder / file, tensors, {"format": "pt"})
        weight_map |= {tensor.name: file for tensor in tensors}
        total += sum(tensor.bytes for tensor in tensors)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _streamed(shards: Shards, name: str, dtype: str | None) -> StreamedTensor:
    info = shards.tensors[name]
    return StreamedTensor(
        name=name, shape=info.shape, dtype=dtype or info.dtype, chunks=lambda: _rounded(shards, name, dtype)
    )


def _head(shards: Shards, name: str, mask_token_id: int, dtype: str | None) -> StreamedTensor:
    """`lm_head.weight` from tensor `name`, with a row for the mask token that cannot win."""
    info = shards.tensors[name]
    row = losing_row(_rounded(shards, name, dtype), mask_token_id)
    return StreamedTensor(
        name=HEAD,
        shape=info.shape,
        dtype=dtype or info.dtype,
        chunks=lambda: with_row(_rounded(shards, name, dtype), mask_token_id, row),
    )


def _rounded(shards: Shards, name: str, dtype: str | None) -> "Iterable[Tensor]":
    import torch

    for chunk in shards.chunks(name, ROWS_AT_ONCE):
        yield chunk.to(torch.bfloat16) if dtype == "BF16" else chunk


def _write_tokenizer(tokenizer: Any, folder: Path, template: str) -> None:
    """The tokenizer, with the chat template by which the model was taught: engines render conversations with it."""
    if template == "plain":
        tokenizer.chat_template = PLAIN_TEMPLATE
    elif not tokenizer.chat_template:
        raise InputError(
            f"{tokenizer.name_or_path}: prompt_template={template}, but its tokenizer has no chat template"
        )
    tokenizer.save_pretrained(folder)


def _write_words(folder: Path, destination: Path, kind: Format, block_length: int) -> None:
    """The code that `trust_remote_code` runs, and how engines are started."""
    for file in kind.code:
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "SERVING.md").write_text(kind.commands(str(destination), block_length), encoding="utf-8")
    (folder / "dllm.yaml").write_text(f"block_size: {block_length}\nthreshold: 0.95\n", encoding="utf-8")
