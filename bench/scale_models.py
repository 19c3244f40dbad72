"""Random models of Qwen3's sizes for `bench.scale`, written by all ranks together, and data for them."""

import json
import os
import time
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bench.random_run import DEVICE, EOS, FIRST_WORD, MASK, TINY, write_data

FILE_BYTES = 1.5e9
SAMPLES = 4096  # sequences of 1024 tokens; a longer run takes them again
# hidden, intermediate, layers, query heads, tied; all have 8 key heads of 128 and Qwen3's vocabulary
SHAPES = {
    "0.6b": (1024, 3072, 28, 16, True),
    "1.7b": (2048, 6144, 28, 16, True),
    "4b": (2560, 9728, 36, 32, True),
    "8b": (4096, 12288, 36, 32, False),
}


def configuration(size: str) -> dict[str, Any]:
    if size == "tiny":
        return TINY | {"tie_word_embeddings": False}
    hidden, intermediate, layers, heads, tied = SHAPES[size]
    return {
        "vocab_size": 151936,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": tied,
    }


def prepare(folder: Path, sizes: list[str]) -> dict[str, Any]:
    """Write the models' files, each rank its own, and measure how fast all ranks together write to disk."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device(DEVICE.type, int(os.environ["LOCAL_RANK"])) if DEVICE.type == "cuda" else DEVICE
    dist.init_process_group("gloo")
    began = time.perf_counter()
    for size in sizes:
        write_model(folder / size, configuration(size), rank, ranks, device)
        if rank == 0:
            lengths = {"tiny": 64}
            write_data_for(folder / size, configuration(size), lengths.get(size, 1024))
    dist.barrier()
    written = time.perf_counter()
    block = os.urandom(2**20) * (256 if DEVICE.type == "cuda" else 16)
    path = folder / f"probe-{rank}"
    with open(path, "wb") as file:
        for _ in range(4):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    dist.barrier()
    rate = 4 * len(block) * ranks / 1e9 / (time.perf_counter() - written)
    path.unlink()
    cards = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    return {"device": cards, "gpus": ranks, "models_s": round(written - began, 1), "write_gb_per_s": round(rate, 2)}


def write_model(folder: Path, shapes: dict[str, Any], rank: int, ranks: int, device: torch.device) -> None:
    """Random bfloat16 weights, the same whatever the number of ranks. Each rank makes and writes some of the files."""
    from safetensors.torch import save_file

    from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM

    folder.mkdir(parents=True, exist_ok=True)
    config = Qwen3LLadaConfig(**shapes, mask_token_id=MASK)
    with torch.device("meta"):
        model = Qwen3LLadaForMaskedLM(config)
    files: list[list[str]] = [[]]
    sizes = {name: (p.shape, 2 * p.numel()) for name, p in model.named_parameters()}
    filled = 0
    for name, (_, size) in sizes.items():
        if filled + size > FILE_BYTES and files[-1]:
            files, filled = [*files, []], 0
        files[-1].append(name)
        filled += size
    names = [f"model-{number + 1:05}-of-{len(files):05}.safetensors" for number in range(len(files))]
    for number in range(rank, len(files), ranks):
        tensors = {name: random_tensor(name, sizes[name][0], device).cpu() for name in files[number]}
        save_file(tensors, folder / names[number], metadata={"format": "pt"})
    if rank == 0:
        where = {name: file for file, held in zip(names, files, strict=True) for name in held}
        total = sum(size for _, size in sizes.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        config.architectures = ["Qwen3LLadaForMaskedLM"]
        config.save_pretrained(folder)
        write_tokenizer(folder)


def random_tensor(name: str, shape: torch.Size, device: torch.device) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02, generator=generator)


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<|mask|>": MASK, "<eos>": EOS, "word": FIRST_WORD}, unk_token="word"))
    PreTrainedTokenizerFast(tokenizer_object=words, mask_token="<|mask|>", eos_token="<eos>").save_pretrained(folder)


def write_data_for(model: Path, shapes: dict[str, Any], length: int) -> None:
    """`write_data` expects the tokenizer in FOLDER/model."""
    (model / "model").mkdir(exist_ok=True)
    write_tokenizer(model / "model")
    write_data(model, shapes, SAMPLES, length)
